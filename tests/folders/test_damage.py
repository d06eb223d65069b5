"""Every kind of file that the project writes and reads again × truncated, a bit flipped, emptied, swapped with another run's.

Each damaged file is refused in one line that names it, rebuilt or skipped with a line that says so, or makes no difference. None
is silent. The project's checksums cannot protect the user's own files that stay readable: a flipped bit in a text or value of the
data, in a YAML file or in a foreign model. Such a file is read as it is; run.json keeps the hash of the training data, and a
resumed run compares it.
"""

import json
import logging
import shutil
from dataclasses import replace

import pytest

from ba_lora import packages
from ba_lora.card import write_card
from ba_lora.errors import DamagedFile, UserError
from ba_lora.experiments.matrix import read_experiment
from ba_lora.files import read_json, write_json, write_sealed
from ba_lora.folders import checksums
from ba_lora.methods.save import load
from ba_lora.training import checkpoints, run
from ba_lora.training.callbacks import forget_after
from tests.folders.damaged import GROWING, KINDS, OTHER, RUN, continued, flip, measured, opened, same

FLIPS = (0.0, 0.2, 0.5, 0.8, 1.0)  # position in the file
DAMAGES = {
    "truncated": lambda content, other: [content[: len(content) // 2], content[:-2]],
    "a bit flipped": lambda content, other: [flip(content, share) for share in FLIPS],
    "emptied": lambda content, other: [b""],
    "swapped": lambda content, other: [other],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", KINDS)
def test_no_damage_goes_unnoticed(home, tmp_path, monkeypatch, caplog, name, damage):
    kind = KINDS[name]
    shutil.copytree(home / kind.part, tmp_path / kind.part)
    shutil.copy(home / "small.yaml", tmp_path)
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "cache"))
    files = sorted(tmp_path.glob(kind.file))
    right = kind.read(tmp_path)
    assert not caplog.records, "whole files give no warning"
    contents = {file: file.read_bytes() for file in files}
    others = [home / kind.other] if kind.other else files[1:] + files[:1]
    swaps = {file: others[number % len(others)].read_bytes() for number, file in enumerate(files)}
    noticed = 0
    for variant in zip(*(DAMAGES[damage](contents[file], swaps[file]) for file in files), strict=True):
        _put(files, variant)
        caplog.clear()
        try:
            value = kind.read(tmp_path)
        except UserError as error:
            said = str(error)
            assert "\n" not in said
        else:
            said = "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
            missing = kind.read in GROWING and value.items() <= right.items()
            assert said or missing or same(value, right), f"{kind.file}, {damage}: another value without a word"
            if said and not name.startswith(("checkpoint", "start", "t-SNE")):
                assert same(value, right), "a rebuilt file equals the original"
        if said:
            assert any(part in said for file in files for part in (file.name, file.parent.name)), said
            noticed += 1
        _put(files, contents.values())
    changes_nothing = damage == "swapped" and all(contents[file] == swaps[file] for file in files)
    assert noticed or changes_nothing or kind.read in GROWING


def _put(files, contents):
    """Write new files instead of changing the old ones: tensors and tables may be mapped to those."""
    for file, content in zip(files, contents, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(content)


# Mix-ups and damage of whole folders


def _replace(folder, by):
    shutil.rmtree(folder)
    shutil.copytree(by, folder)


def test_a_manifest_that_lists_nothing_or_too_little_is_not_a_whole_checkpoint(copied):
    checkpoint = copied / RUN / "checkpoints/checkpoint-4"
    files = read_json(checkpoint / "manifest.json")["files"]
    for manifest, wrong in (
        ({}, "manifest.json cannot be read"),
        ({"files": {}}, "manifest.json does not list trained.safetensors"),
        ({"files": []}, "manifest.json does not list trained.safetensors"),
        *(
            (
                {"files": {name: entry for name, entry in files.items() if name != left_out}},
                f"manifest.json does not list {left_out}",
            )
            for left_out in files
        ),
    ):
        write_json(checkpoint / "manifest.json", manifest)
        assert checkpoints.flaw(checkpoint) == wrong
        assert continued(copied) == "checkpoint-2"
    for number, wrong in (
        (2, "manifest.json does not list optimizer.pt"),
        (4, None),
    ):  # nothing is trained after step 4
        checkpoint = checkpoint.with_name(f"checkpoint-{number}")
        listed = files if number == 4 else read_json(checkpoint / "manifest.json")["files"]
        write_json(
            checkpoint / "manifest.json", {"files": {n: entry for n, entry in listed.items() if n != "optimizer.pt"}}
        )
        (checkpoint / "optimizer.pt").unlink()
        assert checkpoints.flaw(checkpoint) == wrong


def test_a_checkpoint_of_another_run_is_left_aside_and_named(copied, caplog):
    kept = copied / RUN / "checkpoints"
    _replace(kept / "checkpoint-4", copied / OTHER / "checkpoints/checkpoint-4")
    shutil.copy(copied / OTHER / "checkpoints" / checkpoints.START, kept)  # with its start, so that the two match
    assert continued(copied) is None
    said = [record.getMessage() for record in caplog.records]
    assert "it belongs to another run: method is ba-lora there and lora here" in said[0]
    assert "checkpoint-2 is not whole (it does not belong to this start.safetensors)" in said[1]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("seed", 7, "seed is 7 there and 42 here"), ("learning_rate", 0.5, "learning_rate is 0.5 there and 0.001 here")],
)
def test_a_checkpoint_of_a_run_with_the_same_start_is_told_by_its_options(copied, caplog, option, value, said):
    checkpoint = copied / RUN / "checkpoints/checkpoint-4"
    record = read_json(checkpoint / "run.json")
    write_sealed(checkpoint / "run.json", record | {"config": record["config"] | {option: value}})
    manifest = read_json(checkpoint / "manifest.json")
    changed = {"bytes": (checkpoint / "run.json").stat().st_size, "sha256": checksums.hash_of(checkpoint / "run.json")}
    write_json(checkpoint / "manifest.json", manifest | {"files": manifest["files"] | {"run.json": changed}})
    assert continued(copied) == "checkpoint-2" and said in caplog.text


def test_a_checkpoint_under_the_name_of_a_later_step_is_left_aside(copied, caplog):
    kept = copied / RUN / "checkpoints"
    _replace(kept / "checkpoint-4", kept / "checkpoint-2")
    assert (
        continued(copied) == "checkpoint-2" and "checkpoint-4 is not whole (it was written after step 2)" in caplog.text
    )


def test_a_whole_folder_of_another_run_is_refused(copied):
    _replace(copied / RUN / "adapter", copied / OTHER / "adapter")
    for read in (opened, lambda home: load(home / RUN / "adapter"), lambda home: write_card(home / RUN)):
        with pytest.raises(DamagedFile, match="adapter/checksums.json does not belong to the run in"):
            read(copied)
    shutil.copy(copied / OTHER / "run.json", copied / RUN)  # the run it now belongs to
    assert opened(copied).shape == (1, 8, 768)


def test_an_evaluation_of_other_weights_is_refused(copied):
    _replace(copied / RUN / "eval/test", copied / OTHER / "eval/test")
    with pytest.raises(
        DamagedFile, match="score.json was made with other weights than those in .*lora-s42; evaluate this run again"
    ):
        measured(copied)


def test_a_finished_run_that_is_damaged_is_not_called_finished(copied):
    arguments = replace(read_experiment(copied / "small.yaml", copied / "runs").runs[0].arguments, resume=True)
    assert run.train(arguments) == copied / RUN
    weights = copied / RUN / "adapter/adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(flip(content, 0.9))
    with pytest.raises(
        DamagedFile, match=r"adapter_model.safetensors was altered after it was written \(see checksums.json\); put"
    ):
        run.train(arguments)
    shutil.rmtree(weights.parent)
    with pytest.raises(DamagedFile, match="adapter/checksums.json is missing"):
        run.train(arguments)


def test_metrics_that_were_altered_are_put_back_from_the_checkpoint(copied, caplog):
    metrics, copy = copied / RUN / "metrics.jsonl", copied / RUN / "checkpoints/checkpoint-2/metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    assert copy.read_text() == "".join(lines[:2])
    for altered in (
        "",
        lines[0],
        lines[0].replace("0.", "1.") + lines[1],
        lines[1] + lines[0],
        "\0" * 50,
        "".join(lines[:2])[:-9],
    ):
        metrics.write_text(altered)
        caplog.clear()
        assert [row["step"] for row in forget_after(metrics, 2, copy)] == [1, 2]
        assert (
            metrics.read_text() == "".join(lines[:2])
            and "metrics.jsonl was altered; it is restored from" in caplog.text
        )
    for whole in ("".join(lines), "".join(lines[:3]) + '{"step": 4, "lo'):
        metrics.write_text(whole)
        caplog.clear()
        assert len(forget_after(metrics, 2, copy)) == 2
        assert metrics.read_text() == "".join(lines[:2]) and not caplog.records


def test_a_damaged_package_is_fetched_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip finds nothing
    folder = tmp_path / "packages/no-such-package-1.0"
    (folder / "data").mkdir(parents=True)
    (folder / "data/questions.jsonl").write_text("{}\n")
    checksums.write(folder)
    assert packages.fetch("no-such-package", "1.0") == folder
    (folder / "data/questions.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="no-such-package==1.0 cannot be installed"):
        packages.fetch("no-such-package", "1.0")
    assert (
        "questions.jsonl was altered after it was written (see checksums.json): the package is fetched again"
        in capsys.readouterr().err
    )


# The whole command: a run that was cut short after step 2 of 4 continues to the same weights, or is refused by name


def _flipped(file, share=0.99):
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(flip(content, share))


RESUMED = {  # the damage: (how, the message, True if the run finishes)
    "nothing": (lambda home: None, "", True),
    "start": (
        lambda home: _flipped(home / OTHER / "checkpoints/start.safetensors"),
        "start.safetensors was altered after it was written; put it back from a copy, or start again with --overwrite",
        False,
    ),
    "run.json": (lambda home: _flipped(home / OTHER / "run.json"), "run.json", False),
    "the only checkpoint": (
        lambda home: _flipped(home / OTHER / "checkpoints/checkpoint-2/trained.safetensors"),
        "checkpoint-2 is not whole (trained.safetensors was altered) and is skipped",
        True,
    ),
    "metrics": (
        lambda home: _flipped(home / OTHER / "metrics.jsonl", 0.1),
        "metrics.jsonl was altered; it is restored",
        True,
    ),
    "samples": (
        lambda home: [_flipped(file) for file in home.glob("cache/samples/*/input_ids.npy")],
        "input_ids.npy was altered after it was written",
        True,
    ),
    "head": (lambda home: [_flipped(file) for file in home.glob("cache/heads/*/*")], "it is made again", True),
}


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "said", "ends"), RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_on_damaged_files_ends_with_the_same_weights_or_names_the_file(
    home, copied, caplog, damage, said, ends
):
    folder = copied / OTHER
    arguments = read_experiment(copied / "small.yaml", copied / "runs").runs[1].arguments
    shutil.copy(folder / "checkpoints/checkpoint-2/run.json", folder)
    shutil.rmtree(folder / "checkpoints/checkpoint-4")
    shutil.rmtree(folder / "adapter")
    damage(copied)
    if ends:
        run.train(replace(arguments, resume=True))
        same = [(each / OTHER / "adapter/adapter_model.safetensors").read_bytes() for each in (home, copied)]
        assert same[0] == same[1] and read_json(folder / "run.json")["status"] == "finished"
        lines = [(each / OTHER / "metrics.jsonl").read_text().splitlines() for each in (home, copied)]
        losses = [[json.loads(line)["loss"] for line in each] for each in lines]
        assert losses[0] == losses[1] and len(losses[0]) == 4
        assert said in caplog.text
    else:
        with pytest.raises(DamagedFile) as error:
            run.train(replace(arguments, resume=True))
        assert said in str(error.value)


@pytest.mark.slow
def test_a_run_on_a_damaged_teacher_cache_builds_it_again_and_ends_with_the_same_weights(copied, caplog):
    arguments = read_experiment(copied / "small.yaml", copied / "runs").runs[1].arguments
    arguments = replace(arguments, teacher_cache=str(copied / "kept"), save_steps=0)
    made = []
    for number, damage in enumerate(
        (
            lambda: None,
            lambda: _flipped(copied / "kept/rows-00000.safetensors"),
            lambda: (copied / "kept/cache.json").write_text("{"),
        )
    ):
        damage()
        folder = run.train(replace(arguments, output_dir=str(copied / f"run{number}")))
        made.append((folder / "adapter/adapter_model.safetensors").read_bytes())
    assert made[0] == made[1] == made[2]
    assert "rows-00000.safetensors was altered after it was written; it is built again" in caplog.text
    assert "cache.json is damaged; it is written again" in caplog.text
