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
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ba_lora import packages
from ba_lora.card import write_card
from ba_lora.data.sources import read_table
from ba_lora.errors import DamagedFile, UserError
from ba_lora.experiments.matrix import read_experiment, read_file
from ba_lora.files import read_json, write_json, write_sealed
from ba_lora.folders import checksums
from ba_lora.methods.save import load
from ba_lora.models import load_model
from ba_lora.tiny import MODEL_DIR
from ba_lora.training import checkpoints, run
from ba_lora.training.callbacks import forget_after
from ba_lora.training.command_line import parse
from eval.harness.lines import read_lines
from tests.common import small_llama
from tests.folders.damaged import GROWING, KINDS, OTHER, RUN, continued, make_home, measured, opened


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    make_home(home)
    return home


FLIPS = (0.0, 0.2, 0.5, 0.8, 1.0)  # position in the file


def _flip(content, share):
    place = round(share * (len(content) - 1))
    return content[:place] + bytes([content[place] ^ 1 << (place % 7)]) + content[place + 1 :]


DAMAGES = {
    "truncated": lambda content, other: [content[: len(content) // 2], content[:-2]],
    "a bit flipped": lambda content, other: [_flip(content, share) for share in FLIPS],
    "emptied": lambda content, other: [b""],
    "swapped": lambda content, other: [other],
}


def _same(one, other):
    if isinstance(one, torch.Tensor | np.ndarray):
        return type(one) is type(other) and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


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
            assert said or missing or _same(value, right), f"{kind.file}, {damage}: another value without a word"
            if said and not name.startswith(("checkpoint", "start", "t-SNE")):
                assert _same(value, right), "a rebuilt file equals the original"
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


@pytest.fixture
def copied(home, tmp_path, monkeypatch):
    """A copy of the home, to be damaged."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "home/cache"))
    return tmp_path / "home"


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
    weights.write_bytes(_flip(content, 0.9))
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
    file.write_bytes(_flip(content, share))


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
        lambda home: [_flipped(file) for file in home.glob("cache/samples/*/*.arrow")],
        "data-00000-of-00001.arrow was altered after it was written",
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


# Files from before there were checksums, or changed on purpose


def _bare_tensors(file):
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    file.unlink()
    save_file(tensors, file)


NEWER = {  # earlier versions did not write these keys
    "run.json": ("files",),
    "score.json": ("files", "weights"),
    "scores.json": ("files",),
    "measures.json": ("weights",),
    "generation.json": ("lines",),
    "report.json": ("key",),
}


def test_files_of_earlier_versions_open_as_before(copied, caplog):
    reads = {kind.read for kind in KINDS.values()}
    right = [(read, read(copied)) for read in reads]
    for file in copied.rglob("checksums.json"):
        file.unlink()
    for file in (file for file in copied.rglob("*.json") if file.name not in ("trainer_state.json", "tokenizer.json")):
        content = read_json(file)
        for key in NEWER.get(file.name, ("experiment",)):
            content.pop(key, None)
        file.unlink()
        file.write_text(json.dumps(content, indent=2))
    for file in copied.rglob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text(
            "".join(json.dumps({key: value for key, value in row.items() if key != "check"}) + "\n" for row in rows)
        )
    for pattern in ("cache/heads/*/*", "teacher/rows-*", f"{RUN}/checkpoints/start.*"):
        for file in copied.glob(pattern):
            _bare_tensors(file)
    for checkpoint in copied.rglob("checkpoint-*"):
        files = read_json(checkpoint / "manifest.json")["files"]
        for name in checkpoints.BESIDE:
            (checkpoint / name).unlink()
            del files[name]
        entry = {"bytes": (checkpoint / "trainer_state.json").stat().st_size}
        files["trainer_state.json"] |= entry
        write_json(checkpoint / "manifest.json", {"files": files})
    caplog.clear()
    for read, value in right:
        now = read(copied)
        if read is measured:
            now, value = ({key: part for key, part in each.items() if key != "provenance"} for each in (now, value))
        assert _same(now, value), read
    assert not caplog.records


def test_a_json_file_that_was_changed_on_purpose_is_taken_without_its_checksum(copied):
    file = copied / RUN / "run.json"
    text = file.read_text()
    file.write_text(text.replace('"seed": 42', '"seed": 43'))
    with pytest.raises(
        DamagedFile, match='run.json was altered after it was written; .* remove its line "checksum" if the change'
    ):
        read_json(file)
    lines = text.replace('"seed": 42', '"seed": 43').splitlines()
    lines.remove(next(line for line in lines if '"checksum"' in line))
    lines[-2] = lines[-2].rstrip(",")
    file.write_text("\n".join(lines))
    assert read_json(file)["config"]["seed"] == 43
    file.write_text(json.dumps(json.loads(text) | {"status": "running"}))  # by another program
    assert read_json(file)["status"] == "running"


def test_an_adapter_that_is_changed_on_purpose_opens_without_its_checksums(copied, caplog):
    weights = copied / RUN / "adapter/adapter_model.safetensors"
    tensors = {name: 2 * tensor for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(DamagedFile, match="if the change is your own, remove checksums.json from that folder"):
        opened(copied)
    (weights.parent / "checksums.json").unlink()
    opened(copied)
    assert "checksums.json is missing, so " in caplog.text


# The user's own files


OWN = {
    "a config, emptied": ("c.yaml", b"", lambda file: parse(["--config", str(file), "--output_dir", "x"])),
    "a config, torn": ("c.yaml", b"rank: [1", lambda file: parse(["--config", str(file), "--output_dir", "x"])),
    "a config, a bit of a key": (
        "c.yaml",
        b"rbnk: 1\n",
        lambda file: parse(["--config", str(file), "--output_dir", "x"]),
    ),
    "a config, no text": ("c.yaml", b"rank: \xff\n", lambda file: parse(["--config", str(file), "--output_dir", "x"])),
    "an experiment, emptied": ("e.yaml", b"", read_file),
    "an experiment, torn": ("e.yaml", b"name: x\nmethods: {a", read_file),
    "data, emptied": ("d.jsonl", b"", lambda file: read_table(str(file)).rows),
    "JSON lines, torn": (
        "d.jsonl",
        b'{"question": "a", "answer": "b"}\n{"question": "a", "an',
        lambda file: read_table(str(file)).rows,
    ),
    "JSON, torn": ("d.json", b'[{"question": "a", "answer": "b"}, {"ques', lambda file: read_table(str(file)).rows),
    "parquet, torn": ("d.parquet", b"PAR1 and half of a table", lambda file: read_table(str(file)).rows),
    "CSV, emptied": ("d.csv", b"", lambda file: read_table(str(file)).rows),
    "generations, torn": ("g.jsonl", b'{"id": 1, "completion": "x", "refer', lambda file: read_lines(file, ("id",))),
    "generations, emptied": ("g.jsonl", b"", lambda file: read_lines(file, ("id",))),
}


@pytest.mark.parametrize(("name", "content", "read"), OWN.values(), ids=OWN)
def test_a_broken_file_of_the_users_is_refused_by_name(tmp_path, name, content, read):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def _edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes, indent=2))


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("config.json", lambda file: _edit(file, rope_parameters={"rope_theta": 20000.0, "rope_type": "default"})),
        ("config.json", lambda file: file.write_bytes(_flip(file.read_bytes(), 0.5))),
        ("model.safetensors", lambda file: file.write_bytes(_flip(file.read_bytes(), 0.9))),
    ],
)
def test_a_copied_model_with_another_config_or_weights_is_refused_until_its_checksums_are_removed(
    home, tmp_path, name, edit
):
    copy = Path(shutil.copytree(home / "own/full", tmp_path / "copy"))
    edit(copy / name)
    for read in (lambda: load_model(str(copy)), lambda: load(copy)):
        with pytest.raises(DamagedFile, match=rf"{name} .*if the change is your own, remove checksums.json"):
            read()


def test_a_copied_model_may_have_another_generation_config(home, tmp_path, caplog):
    copy = Path(shutil.copytree(home / "own/full", tmp_path / "copy"))
    _edit(copy / "generation_config.json", max_length=77)
    assert load_model(str(copy)).generation_config.max_length == 77
    assert "generation_config.json was altered after it was written" in caplog.text and "your own change" in caplog.text


def test_a_copied_model_may_be_edited_once_its_checksums_are_removed(home, tmp_path, caplog):
    for source in (MODEL_DIR, home / "own/full"):
        copy = Path(shutil.copytree(source, tmp_path / source.name))
        _edit(copy / "config.json", pad_token_id=None)
        (copy / checksums.FILE).unlink(missing_ok=True)
        assert load_model(str(copy)).config.pad_token_id is None and not caplog.records


def test_notes_beside_a_model_may_be_edited_after_the_run_was_repeated(tmp_path, caplog):
    small_llama(vocab_size=768).save_pretrained(tmp_path / "M")
    for file in MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "M")
    words = ["--model", str(tmp_path / "M"), "--method", "full", "--limit", "4", "--max_steps", "1", "--use_cpu"]
    words += ["--effective_batch_size", "4", "--progress", "false", "--template", "plain", "--overwrite"]
    for text in ("first", "second"):
        saved = run.train(parse([*words, "--output_dir", str(tmp_path / "run")])) / "model"
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= read_json(saved / checksums.FILE)[
            "files"
        ].keys()
        assert "notes.txt" not in read_json(saved / checksums.FILE)["files"]
        (saved / "notes.txt").write_text(text)
    assert load(tmp_path / "run").config.vocab_size == 768
    (saved / "tokenizer.json").write_bytes(_flip((saved / "tokenizer.json").read_bytes(), 0.5))
    with pytest.raises(DamagedFile, match="tokenizer.json was altered"):
        load(tmp_path / "run")
