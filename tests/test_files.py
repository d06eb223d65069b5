"""Folders that are replaced, emptied or cleaned up: only our own files are removed, whatever else is there."""

import json
import os

import pytest
import torch

from ba_lora.errors import UserError
from ba_lora.files import atomic_folder, atomic_write, remove_leftovers, remove_own
from ba_lora.folders.kinds import REPLACED, is_ours
from ba_lora.folders.ownership import claimed, refuse_foreign, remove_run
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export, export_merged
from ba_lora.models import load_model
from tests.common import finished_run, small_llama
from tests.folders.test_ownership import seen


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_folder_is_replaced_only_where_names_are_given_and_the_others_stay(tmp_path):
    place = fill(tmp_path / "saved", "config.json", "notes.txt", "mine/draft.txt")
    (place / "link").symlink_to(tmp_path)
    before = seen(tmp_path)
    with pytest.raises(UserError, match="is not empty, and nothing in it may be replaced"), atomic_folder(place):
        raise AssertionError("the block must not start")
    assert seen(tmp_path) == before
    with atomic_folder(place, ("*.json",)) as temporary:
        fill(temporary, "new.json")
    assert sorted(path.name for path in place.iterdir()) == ["link", "mine", "new.json", "notes.txt"]
    assert (place / "mine/draft.txt").read_text() == "mine/draft.txt" and (place / "link").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_link_to_a_folder_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    fill(tmp_path / "real", "old.json")
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link", ("*.json",)) as temporary:
        fill(temporary, "new.json")
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "real").iterdir()] == ["new.json"]


def test_a_folder_that_is_filled_while_it_is_made_is_not_lost(tmp_path):
    with pytest.raises(UserError, match="is not empty"), atomic_folder(tmp_path / "made") as temporary:
        fill(temporary, "ours.json")
        fill(tmp_path / "made", "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "thesis.txt").is_file()


def test_a_file_is_not_written_over_a_folder(tmp_path):
    fill(tmp_path / "report.html", "page.html")
    with pytest.raises(UserError, match="report.html is a folder; name a file"), atomic_write(tmp_path / "report.html"):
        raise AssertionError("the block must not start")


def test_only_temporary_names_of_ours_are_leftovers(tmp_path):
    kept = (".x.tmp", ".vim.old", ".run.json.tmp", ".thesis.4711.tmp", ".run.json.4711x.tmp", ".adapter.tmp/mine.txt")
    kept += (".logs.4711.old/mine.txt", ".eval.4711.0a1b2c3d.tmp/mine.txt", ".checkpoints.4711.old/mine.txt")
    fill(tmp_path, *kept, ".run.json.4711.tmp", ".adapter.4711.0a1b2c3d.tmp/config.json", ".model.4711.old/config.json")
    (tmp_path / "model").mkdir()
    (tmp_path / ".merged.4711.old").symlink_to(tmp_path / "model")
    (tmp_path / "merged").mkdir()
    remove_leftovers(tmp_path, REPLACED)
    assert {path.name for path in tmp_path.iterdir()} == {name.split("/")[0] for name in kept} | {"model", "merged"}


def test_a_folder_that_was_killed_between_two_names_comes_back(tmp_path):
    fill(tmp_path, ".adapter.4711.0a1b2c3d.old/notes.txt", ".adapter.4711.0a1b2c3d.tmp/config.json")
    remove_leftovers(tmp_path, REPLACED)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter" / "notes.txt").is_file()


def test_an_old_run_is_taken_away_and_the_users_own_files_and_what_links_lead_to_stay(tmp_path):
    (tmp_path / "run").mkdir()
    run, elsewhere = finished_run(tmp_path / "run"), fill(tmp_path / "elsewhere", "start.safetensors", "score.json")
    mine = (
        "notes.txt",
        ".hidden",
        "adapter/notes.md",
        "eval/notes.txt",
        "eval/gsm8k/notes.txt",
        "eval/mine/score.json",
    )
    mine += ("logs/mine.txt", "adapter/backup/adapter_config.json", "features/mine.npy")
    mine += ("adapter/plot.py", "adapter/tokenizer_notes.json", "adapter/notes.index.json", "adapter/chat_template.old")
    fill(run, *mine, "metrics.jsonl", "features/features_step_0.npy", "logs/events.out.tfevents.1", "eval/row.md")
    score = {"benchmark": "gsm8k", "metric": "accuracy", "score": 0.5, "ba_lora_version": "0.0.1"}
    for name in ("gsm8k", "math"):
        fill(run, f"eval/{name}/generations.jsonl")
        (run / "eval" / name / "score.json").write_text(json.dumps(score))
    (run / "checkpoints").symlink_to(elsewhere)
    (run / "merged").symlink_to(elsewhere)
    before = seen(elsewhere)
    remove_run(run)
    marker = "eval/gsm8k/.ba-lora.json"  # the evaluation that holds the notes is marked as ours and can be repeated
    left = {str(path.relative_to(run)) for path in run.rglob("*") if not path.is_dir()}
    assert left == {*mine, marker} and is_ours(run / "eval/gsm8k", "evaluation")
    assert seen(elsewhere) == before and not (run / "eval/math").exists()


def test_a_copy_of_a_checkpoint_that_the_user_made_stays(tmp_path):
    (tmp_path / "run").mkdir()
    run = finished_run(tmp_path / "run")
    mine = ("checkpoint-40-mine/x", "checkpoint-40.old/x", "checkpoint-4x/x", "checkpoint-best/x")
    fill(run / "checkpoints", *mine, "start.safetensors", "checkpoint-7/x", "checkpoint-1234567/x")
    remove_run(run)
    assert {str(path.relative_to(run / "checkpoints")) for path in run.rglob("x")} == set(mine)


def test_a_run_is_not_replaced_while_another_process_evaluates_it(tmp_path):
    (tmp_path / "run").mkdir()
    run = finished_run(tmp_path / "run")
    for kind, place in (("evaluation", run / "eval/gsm8k"), ("evaluations", run / "eval")):
        with claimed(place, kind):
            fill(place, "generations.jsonl")
            before = seen(run)
            with pytest.raises(
                UserError, match=rf"{place} is in use by process {os.getpid()} on .*; wait until it ends"
            ):
                remove_run(run)
            assert seen(run) == before
    remove_run(run)
    assert not run.exists() or not list(run.iterdir())


def test_links_are_removed_and_never_followed(tmp_path):
    fill(tmp_path / "outside", "config.json")
    fill(tmp_path / "place", "config.json")
    (tmp_path / "place" / "model.safetensors").symlink_to(tmp_path / "outside" / "config.json")
    (tmp_path / "place" / "logs").symlink_to(tmp_path / "outside")
    before = seen(tmp_path / "outside")
    remove_own(tmp_path / "place", ("config.json", "model.safetensors", "logs"))
    assert not (tmp_path / "place").exists() and seen(tmp_path / "outside") == before


@pytest.mark.parametrize("names", [("config.json", "model.safetensors"), ("adapter_config.json",), (".bashrc",)])
def test_an_export_does_not_replace_a_model_or_a_home_that_it_did_not_write(names, tmp_path):
    model = attach(small_llama(), "lora", rank=2, alpha=2)
    before = seen(fill(tmp_path / "mine", *names))
    with pytest.raises(UserError, match=r"mine is not empty and holds no adapter or model that this project saved"):
        export(model, tmp_path / "mine")
    assert seen(tmp_path / "mine") == before


@pytest.mark.parametrize("method", ["lora", "pfeiffer", "full"])
def test_an_export_replaces_an_earlier_one_and_keeps_the_notes_beside_it(method, tmp_path):
    model = attach(small_llama(), method, rank=2, alpha=2)
    export(model, tmp_path / "saved")
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    with torch.no_grad():
        next(parameter for parameter in model.parameters() if parameter.requires_grad).add_(1.0)
    weights = next((tmp_path / "saved").glob("*.safetensors"))
    before = weights.read_bytes()
    export(model, tmp_path / "saved")
    assert weights.read_bytes() != before and (tmp_path / "saved" / "notes.txt").read_text() == "mine"


def test_a_merged_model_does_not_replace_its_own_base(tmp_path):
    load_model("tiny").save_pretrained(tmp_path / "base")
    export(attach(load_model("tiny"), "lora", rank=2, alpha=2), tmp_path / "adapter")
    before = seen(tmp_path / "base")
    with pytest.raises(UserError, match="base is not empty and holds no adapter or model"):
        export_merged(tmp_path / "adapter", "tiny", tmp_path / "base")
    assert seen(tmp_path / "base") == before


def test_a_claimed_folder_is_marked_while_it_is_written_and_after_only_if_nothing_else_proves_it(tmp_path):
    with claimed(tmp_path / "new" / "run", "run") as folder:
        assert json.loads((folder / ".ba-lora.json").read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"), claimed(folder, "run"):
            raise AssertionError("the block must not start")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="broken"), claimed(tmp_path / "run", "run") as folder:
        finished_run(folder)
        raise ValueError("broken")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "run.json"]
    with claimed(tmp_path / "answers", "evaluation") as folder:
        fill(folder, "judgments.jsonl")
    assert json.loads((folder / ".ba-lora.json").read_text()) == {"made_by": "ba-lora", "kind": "evaluation"}
    with claimed(folder, "evaluation"):
        pass
    for other in ("run", "submission", "experiment"):
        with pytest.raises(UserError, match=r"is not empty and holds no .*judgments.jsonl"):
            refuse_foreign(folder, other)


def test_a_link_to_a_folder_can_be_written_into_and_one_to_nothing_cannot(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    with claimed(tmp_path / "run", "run") as folder:
        finished_run(folder)
        with pytest.raises(UserError, match="in use"), claimed(tmp_path / "disk", "run"):
            raise AssertionError("the block must not start")
    assert is_ours(tmp_path / "disk", "run") and (tmp_path / "run").is_symlink()
    (tmp_path / "gone").symlink_to("nothing")
    with pytest.raises(UserError, match="gone is a link to nothing; name another folder"):
        refuse_foreign(tmp_path / "gone", "run")
