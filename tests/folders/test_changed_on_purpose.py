"""Files of earlier versions, files changed on purpose and the user's own: each is read as it is, or refused by name."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ba_lora.data.sources import read_table
from ba_lora.errors import DamagedFile, UserError
from ba_lora.experiments.matrix import read_file
from ba_lora.files import read_json, write_json
from ba_lora.folders import checksums
from ba_lora.methods.save import load
from ba_lora.models import load_model
from ba_lora.tiny import MODEL_DIR
from ba_lora.training import checkpoints, run
from ba_lora.training.command_line import parse
from eval.harness.lines import read_lines
from tests.common import small_llama
from tests.folders.damaged import KINDS, RUN, flip, measured, opened, same

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
        assert same(now, value), read
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
        ("config.json", lambda file: file.write_bytes(flip(file.read_bytes(), 0.5))),
        ("model.safetensors", lambda file: file.write_bytes(flip(file.read_bytes(), 0.9))),
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
    (saved / "tokenizer.json").write_bytes(flip((saved / "tokenizer.json").read_bytes(), 0.5))
    with pytest.raises(DamagedFile, match="tokenizer.json was altered"):
        load(tmp_path / "run")
