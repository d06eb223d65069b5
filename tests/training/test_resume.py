"""Resuming a run with changed inputs is refused, names what changed, and leaves the run as it is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from ba_lora.errors import UserError
from ba_lora.files import digest, read_json, sha256, write_json
from ba_lora.folders.kinds import MARKER
from ba_lora.folders.ownership import mark
from ba_lora.training.command_line import parse
from ba_lora.training.resume import refuse_changes
from ba_lora.training.run import train
from tests.common import ROOT, command
from tests.tiny_encoder import make_home
from tests.training.resuming import (
    GENERATION,
    SHORT,
    begin,
    change_one_value,
    edit_json,
    rows,
    swap_two_tokens,
    write_lines,
)

CLASSIFICATION = ["--model", "encoder", "--task", "sst2", "--data", "sst2", "--rank", "2", "--limit", "8"]
CLASSIFICATION += ["--features_steps", "1"]


@pytest.fixture(scope="module")
def classification(tmp_path_factory):
    return begin(CLASSIFICATION, make_home(tmp_path_factory.mktemp("classification")))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


OF_GENERATION = {
    "other answers": (lambda: write_lines("d.jsonl", [row | {"answer": "7"} for row in rows()]), "the data of d.jsonl"),
    "other questions, as long": (
        lambda: write_lines("d.jsonl", rows(what="was")),
        "8 samples, now [0-9a-f]{12}, 8 samp",
    ),
    "fewer rows": (lambda: write_lines("d.jsonl", rows(5)), "8 samples, now [0-9a-f]{12}, 5 samples"),
    "more rows": (lambda: write_lines("d.jsonl", rows(9)), "8 samples, now [0-9a-f]{12}, 9 samples"),
    "rows in another order": (lambda: write_lines("d.jsonl", rows()[::-1]), "the data of d.jsonl"),
    "another tokenizer": (lambda: edit_json("M/tokenizer.json", swap_two_tokens), "the tokenizer of M"),
    "one value of the base": (
        lambda: change_one_value("M/model.safetensors", "model.embed_tokens.weight"),
        r"the weights of M \([0-9a-f]{12}, now [0-9a-f]{12}\)",
    ),
    "one value of a norm": (
        lambda: change_one_value("M/model.safetensors", "model.layers.1.input_layernorm.weight"),
        "the weights of M",
    ),
    "another rotary base": (
        lambda: edit_json("M/config.json", lambda c: c["rope_parameters"].update(rope_theta=5000.0)),
        "the config of M",
    ),
}


def cases(changes, *of_finished):
    """(change, what is named, folder): each change of a stopped run, and some of a finished one."""
    stopped = [pytest.param(*case, "run", id=name) for name, case in changes.items()]
    return stopped + [pytest.param(*changes[name], "done", id=f"finished, {name}") for name in of_finished]


@pytest.mark.parametrize(("change", "named", "folder"), cases(OF_GENERATION, "fewer rows", "one value of a norm"))
def test_a_run_of_generation_is_not_resumed_on_other_inputs(here, change, named, folder):
    here("generation")
    change()
    before = contents(".")
    with pytest.raises(UserError, match=named) as refused:
        train(parse([*GENERATION, *SHORT, "--resume", "--output_dir", folder]))
    assert str(refused.value).startswith(f"--resume would mix two runs: since {folder} was begun, this has changed: ")
    assert "--overwrite" in str(refused.value) and "\n" not in str(refused.value) and refused.value.status == 2
    assert contents(".") == before


def relabel():
    lines = [json.loads(line) for line in Path("sst2/train.jsonl").read_text().splitlines()]
    lines[3]["label"] = 1 - lines[3]["label"]
    write_lines("sst2/train.jsonl", lines)


def swap_two_words():
    words = Path("encoder/vocab.txt").read_text().split("\n")
    edit_json("encoder/tokenizer.json", lambda t: t["model"]["vocab"].update({words[11]: 12, words[12]: 11}))


def other_body():
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=19, max_position_embeddings=32, **sizes)).save_pretrained("encoder")


OF_CLASSIFICATION = {
    "one other label": (relabel, "the data of sst2"),
    "other rows": (lambda: shutil.copy("sst2/validation.jsonl", "sst2/train.jsonl"), "the data of sst2"),
    "other rows to save features of": (
        lambda: shutil.copy("sst2/train.jsonl", "sst2/validation.jsonl"),
        "the examples of --features_split",
    ),
    "another tokenizer": (swap_two_words, "the tokenizer of encoder"),
    "another body": (other_body, "the weights of encoder"),
    "one value of the body": (
        lambda: change_one_value("encoder/model.safetensors", "embeddings.word_embeddings.weight"),
        "the weights of encoder",
    ),
}


@pytest.mark.parametrize(("change", "named", "folder"), cases(OF_CLASSIFICATION, "one other label", "another body"))
def test_a_run_of_classification_is_not_resumed_on_other_inputs(here, change, named, folder):
    here("classification")
    change()
    before = contents(".")
    with pytest.raises(UserError, match=named):
        train(parse([*CLASSIFICATION, *SHORT, "--resume", "--output_dir", folder]))
    assert contents(".") == before


def test_another_start_is_refused_before_anything_is_written(here):
    here("generation")
    start = Path("run/checkpoints/start.safetensors")
    save_file({name: tensor * 1.25 for name, tensor in load_file(start).items()}, start)
    before = contents("run")
    with pytest.raises(UserError, match="start.safetensors"):
        train(parse([*GENERATION, *SHORT, "--resume"]))
    assert contents("run") == before


@pytest.mark.parametrize(
    ("is_marked", "message"),
    [
        (False, r"run is not empty and holds no run \(checkpoints, ...\)"),
        (
            True,
            "run holds checkpoints but no run.json, which says what they belong to",
        ),  # as left by a killed run
    ],
)
def test_checkpoints_without_a_record_of_what_they_are_of_are_not_continued(here, is_marked, message):
    here("generation")
    Path("run/run.json").unlink()
    if is_marked:
        mark(Path("run"), "run")
    before = contents("run")
    with pytest.raises(UserError, match=message):
        train(parse([*GENERATION, *SHORT, "--resume"]))
    assert {name: value for name, value in contents("run").items() if name.name != MARKER} == {
        name: value for name, value in before.items() if name.name != MARKER
    }


@pytest.mark.parametrize(("words", "name"), [(GENERATION, "generation"), (CLASSIFICATION, "classification")])
def test_the_same_inputs_go_on_and_keep_their_record(here, caplog, words, name):
    here(name)
    begun = read_json("run/run.json")
    train(parse([*words, *SHORT, "--resume"]))
    ended = read_json("run/run.json")
    assert ended["status"] == "finished" and ended["steps"] == 3
    for fact in ("tokenizer", "data", "order_hash", "base", "start", "inputs"):
        assert ended[fact] == begun[fact], fact
    saved = "adapter/adapter_model.safetensors"
    assert Path("run", saved).read_bytes() == Path("done", saved).read_bytes()
    before = contents("run")
    train(parse([*words, *SHORT, "--resume"]))
    assert caplog.messages[-1] == "run holds this run, finished: nothing to do" and contents("run") == before


def test_a_run_of_an_earlier_version_goes_on_and_a_line_says_what_is_not_compared(here, caplog):
    here("generation")
    record = read_json("run/run.json")
    for name in ("tokenizer", "base", "start", "inputs"):
        del record[name]
    del record["data"]["trained"]
    write_json("run/run.json", record)
    train(parse([*GENERATION, *SHORT, "--resume"]))
    (line,) = [message for message in caplog.messages if "earlier version" in message]
    assert line == (
        "run/run.json was written by an earlier version, without hashes of: tokenizer, data.trained, base.config, "
        "base.weights, start; these are not compared"
    )
    assert read_json("run/run.json")["base"]["weights"]
    write_json("run/run.json", record)
    write_lines("d.jsonl", rows(5))
    with pytest.raises(UserError, match="the data of d.jsonl"):
        train(parse([*GENERATION, *SHORT, "--resume"]))


def test_another_content_of_the_deepspeed_config_is_named(here):
    here("generation")
    for name in ("zero2", "zero3"):
        shutil.copy(ROOT / f"configs/deepspeed/{name}.json", f"{name}.json")
    record = read_json("run/run.json")
    arguments = parse([*GENERATION, *SHORT, "--resume", "--deepspeed", "zero2.json"])
    now = {"deepspeed": digest(read_json("zero2.json"))}
    write_json("run/run.json", {name: value for name, value in record.items() if name != "deepspeed"})
    refuse_changes(arguments, now)  # an earlier version did not record it
    write_json("run/run.json", record | now)
    refuse_changes(arguments, now)
    with pytest.raises(UserError, match=r"this has changed: the content of zero2.json \(\w{12}, now \w{12}\)"):
        refuse_changes(arguments, {"deepspeed": digest(read_json("zero3.json"))})


@pytest.mark.parametrize("place", ["data", "versions", "base", "data.hash"])
def test_a_record_that_somebody_has_emptied_by_hand_is_no_traceback(here, caplog, place):
    here("generation")
    record = read_json("run/run.json")
    if place == "data.hash":
        record["data"]["hash"] = None
    else:
        record[place] = None
    write_json("run/run.json", record)
    if place == "data.hash":
        with pytest.raises(UserError, match=r"the data of d.jsonl .*\(None, 8 samples, now \w{12}, 8 samples\)"):
            train(parse([*GENERATION, *SHORT, "--resume"]))
    else:
        train(parse([*GENERATION, *SHORT, "--resume"]))
        lacking = {"data": "data.hash, data.trained", "base": "base.config, base.weights", "versions": ""}[place]
        assert lacking in caplog.text and ("these are not compared" in caplog.text) == bool(lacking)


def test_a_config_that_differs_only_in_what_changes_no_value_is_the_same(here):
    here("generation")
    edit_json("M/config.json", lambda config: config.update(use_cache=False))
    train(parse([*GENERATION, *SHORT, "--resume"]))


def test_the_use_of_a_teacher_cache_does_not_change_within_a_run(here):
    here("generation")
    with pytest.raises(UserError, match="the use of --teacher_cache \\(False, now True\\)"):
        train(parse([*GENERATION, *SHORT, "--resume", "--teacher_cache", "cache"]))
    assert not Path("cache").exists()


def test_the_command_says_it_in_one_line_and_ends_with_status_2(here):
    home = here("generation")
    write_lines("d.jsonl", rows(6))
    done = command("train.py", *GENERATION, *SHORT, "--resume", cwd=home)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: --resume would mix two runs: since run was begun")


@pytest.mark.slow
def test_two_processes_refuse_another_base_together(here):
    home = here("generation")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += [str(ROOT / "train.py"), *GENERATION, *SHORT, "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start():
        done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True, timeout=600)
        return done.returncode, done.stderr

    weights, before = (home / "M/model.safetensors").read_bytes(), contents("run")
    change_one_value("M/model.safetensors", "model.norm.weight")
    status, said = start()
    assert status == 1 and said.count("error: --resume would mix two runs") == 2 and "the weights of M" in said
    assert contents("run") == before
    (home / "M/model.safetensors").write_bytes(weights)
    assert start()[0] == 0
    assert read_json("run/run.json")["status"] == "finished" and read_json("run/run.json")["processes"] == 2


class Code:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return Path("ran").write_text, ("x",)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_does_not_run_and_the_checkpoint_is_named(here, name):
    (checkpoint,) = (here("generation") / "run" / "checkpoints").glob("checkpoint-*")
    torch.save({"state": Code()}, checkpoint / name)
    entry = {"bytes": (checkpoint / name).stat().st_size, "sha256": sha256(checkpoint / name)}
    edit_json(checkpoint / "manifest.json", lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(UserError, match=f"{checkpoint.name}: .* holds something other than tensors"):
        train(parse([*GENERATION, *SHORT, "--resume"]))
    assert not Path("ran").exists()
