"""Resuming a run with changed inputs is refused, names what changed, and leaves the run as it is."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, TrainerCallback

from ba_lora.errors import Stopped, UserError
from ba_lora.experiments.matrix import read_experiment
from ba_lora.experiments.pool import command_of
from ba_lora.files import digest, read_json, write_json
from ba_lora.folders.kinds import MARKER
from ba_lora.folders.ownership import mark
from ba_lora.tiny import MODEL_DIR
from ba_lora.training.command_line import parse
from ba_lora.training.inputs import input_hashes
from ba_lora.training.resume import SAMPLED, base_of, refuse_changes, tensors_hash, trained_hash
from ba_lora.training.run import train
from tests.common import ROOT, command, small_llama
from tests.tiny_encoder import make_home

GENERATION = ["--model", "M", "--data", "d.jsonl", "--template", "plain", "--max_length", "96", "--rank", "2"]
CLASSIFICATION = ["--model", "encoder", "--task", "sst2", "--data", "sst2", "--rank", "2", "--limit", "8"]
CLASSIFICATION += ["--features_steps", "1"]
SHORT = ["--output_dir", "run", "--max_steps", "3", "--effective_batch_size", "4", "--micro_batch_size", "2"]
SHORT += ["--progress", "false", "--use_cpu"]


class StopAfterTheFirstStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **objects):
        if state.global_step == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def write_lines(file, rows):
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(count=8, what="is"):
    return [{"question": f"What {what} {i} + {i}?", "answer": str(2 * i)} for i in range(count)]


def begin(words, home):
    """In the folder `home`, create run/, stopped after step 1, and done/, the same run finished."""
    before = os.getcwd()
    os.chdir(home)
    try:
        with pytest.raises(Stopped):
            train(parse([*words, *SHORT]), callbacks=[StopAfterTheFirstStep()])
        shutil.copytree("run", "done")
        train(parse([*words, *SHORT, "--resume", "--output_dir", "done"]))
    finally:
        os.chdir(before)
    return home


@pytest.fixture(scope="module")
def generation(tmp_path_factory):
    home = tmp_path_factory.mktemp("generation")
    small_llama(vocab_size=768).save_pretrained(home / "M")
    for file in MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, home / "M")
    write_lines(home / "d.jsonl", rows())
    return begin(GENERATION, home)


@pytest.fixture(scope="module")
def classification(tmp_path_factory):
    return begin(CLASSIFICATION, make_home(tmp_path_factory.mktemp("classification")))


@pytest.fixture
def here(tmp_path, monkeypatch, request):
    """A copy of a fixture's folder, as the current directory."""
    home = tmp_path / "home"

    def copy(name):
        shutil.copytree(request.getfixturevalue(name), home)
        monkeypatch.chdir(home)
        return home

    return copy


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def change_one_value(file, name):
    """Change one number of one tensor in its last bits, avoiding those that a sample would read."""
    tensors = load_file(file)
    flat = tensors[name].view(-1)
    flat[1] = torch.nextafter(flat[1], torch.tensor(9.0))
    save_file(tensors, file, metadata={"format": "pt"})


def edit_json(file, edit):
    content = json.loads(Path(file).read_text())
    edit(content)
    Path(file).write_text(json.dumps(content))


def swap_two_tokens(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    one, two = "a", "e"
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


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


def test_every_value_of_a_model_counts_in_its_hash():
    model = small_llama()
    before = base_of(model)
    assert base_of(small_llama()) == before
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            was = parameter.view(-1)[-1].item()
            parameter.view(-1)[-1] = was + 1e-3
            assert base_of(model)["weights"] != before["weights"], name
            parameter.view(-1)[-1] = was
    assert base_of(model) == before
    assert base_of(model.to(torch.bfloat16))["weights"] != before["weights"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
def test_tensors_of_any_precision_shape_and_layout_have_a_hash(dtype):
    values = torch.arange(24).reshape(4, 6).to(dtype)
    assert tensors_hash([("a", values.t())]) == tensors_hash([("a", values.t().contiguous())])
    assert len({tensors_hash([("a", each)]) for each in (values, values.t(), values[:0], values[0, 0])}) == 4
    assert tensors_hash([("a", values)]) != tensors_hash([("b", values)])
    many = torch.zeros(40 * SAMPLED)
    sample = tensors_hash([("a", many)], SAMPLED)
    many[1] = 1.0
    assert tensors_hash([("a", many)], SAMPLED) == sample != tensors_hash([("a", many)])


def test_the_hash_of_trained_tokens_sees_masks_and_borders():
    def of(*labels):
        return trained_hash(Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in labels]))

    hashes = {of([1, 2, 3], [4]), of([1, 2], [3, 4]), of([-100, 2, 3], [4]), of([4], [1, 2, 3])}
    assert len(hashes) == 4


def matrix(folder):
    (folder / "c.yaml").write_text("model: M\ndata: d.jsonl\ntemplate: plain\nmax_steps: 1\n")
    (folder / "e.yaml").write_text("name: e\nconfig: c.yaml\nmethods: {lora: {method: lora, rank: 2}}\nseeds: [1]\n")
    (run,) = read_experiment("e.yaml").runs
    record = {"status": "finished", "config": {**vars(run.arguments)}, "inputs": input_hashes(run.arguments)}
    write_json(run.folder / "run.json", record)
    return run


def same_time(file, change):
    """Apply `change`, then restore the file's times, as a copy that keeps times does."""
    was = os.stat(file)
    change()
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


STALE = {
    "other data": lambda: write_lines("d.jsonl", rows(what="was")),
    "other data of the same time and size": lambda: same_time(
        "d.jsonl", lambda: write_lines("d.jsonl", [*rows()[:-1], {"question": "What is 7 + 7?", "answer": "15"}])
    ),
    "another base": lambda: change_one_value("M/model.safetensors", "model.norm.weight"),
    "another tokenizer": lambda: edit_json("M/tokenizer.json", swap_two_tokens),
}


@pytest.mark.parametrize("change", STALE.values(), ids=STALE)
def test_a_matrix_takes_no_finished_run_on_other_inputs_for_done(here, change):
    run = matrix(here("generation"))
    assert run.is_trained()
    change()
    assert not run.is_trained()


MEASURED = {
    "another base": lambda: change_one_value("M/model.safetensors", "model.norm.weight"),
    "other problems": lambda: write_lines("d.jsonl", rows(what="was")),
    "nothing": lambda: Path("d.jsonl").touch(),
}


@pytest.mark.parametrize("change", MEASURED)
@pytest.mark.parametrize("name", ["base", "lora-s1"])
def test_a_matrix_measures_again_what_was_measured_with_other_files(here, name, change):
    here("generation")
    Path("c.yaml").write_text("model: M\ndata: tinymath:train\ntemplate: plain\nmax_steps: 1\n")
    parts = "methods: {base: {}, lora: {method: lora, rank: 2}}\nseeds: [1]\nevaluate: {test: {data: d.jsonl}}\n"
    Path("e.yaml").write_text(f"name: e\nconfig: c.yaml\n{parts}")
    experiment = read_experiment("e.yaml")
    (run,) = [each for each in experiment.runs if each.name == name]
    if run.arguments:
        write_json(run.folder / "run.json", {"status": "finished", "config": {**vars(run.arguments)}})
    made = run.measured_with(experiment.evaluations)
    write_json(run.folder / "measures.json", made | {"scores": {"test": 0.5}})
    assert set(made["inputs"]) == {"M", "d.jsonl"} and run.state(experiment.evaluations) == "measured"
    MEASURED[change]()
    assert run.state(experiment.evaluations) == ("measured" if change == "nothing" else "trained")
    del made["inputs"]  # an earlier version lacked this
    write_json(run.folder / "measures.json", made | {"scores": {"test": 0.5}})
    assert run.state(experiment.evaluations) == "measured"


@pytest.mark.parametrize("change", STALE.values(), ids=STALE)
def test_a_matrix_of_commands_resumes_only_the_same_run_and_repeats_it_when_asked(here, change):
    run = matrix(here("generation"))
    record = read_json(run.folder / "run.json")
    for status in ("finished", "running"):
        write_json(run.folder / "run.json", record | {"status": status})
        assert command_of(run)[-1] == "--resume" and command_of(run, overwrite=True)[-1] == "--overwrite"
    assert run.words[0] in command_of(run)
    change()
    assert command_of(run)[-1] == "--overwrite"


def test_a_matrix_of_commands_starts_a_run_with_other_options_anew(here):
    run = matrix(here("generation"))
    record = read_json(run.folder / "run.json")
    write_json(run.folder / "run.json", record | {"config": record["config"] | {"learning_rate": 0.5}})
    assert command_of(run)[-1] == "--overwrite"
    (run.folder / "run.json").unlink()
    assert command_of(run)[-1] == "--overwrite"


def test_a_matrix_keeps_finished_runs_whose_inputs_are_elsewhere_or_were_not_recorded(here):
    run = matrix(here("generation"))
    Path("d.jsonl").unlink()
    shutil.rmtree("M")
    assert run.is_trained()
    record = read_json(run.folder / "run.json")
    del record["inputs"]
    write_json(run.folder / "run.json", record)
    assert run.is_trained()


def test_the_files_of_a_run_are_those_of_its_split_and_task(tmp_path):
    for name in ("sst2/train.tsv", "sst2/dev.tsv", "cola/train.tsv", "plain/a.jsonl", "plain/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def changes(file, *words):
        options = [*words, "--model", "someone/encoder", "--output_dir", "x"]
        before = input_hashes(parse(options))["data"]
        (tmp_path / file).write_text((tmp_path / file).read_text() + "y")
        return input_hashes(parse(options))["data"] != before

    task = ["--task", "sst2", "--data", str(tmp_path)]
    assert changes("sst2/train.tsv", *task)
    assert not changes("sst2/dev.tsv", *task) and not changes("cola/train.tsv", *task)
    assert changes("plain/b.jsonl", "--data", f"{tmp_path}:plain", "--template", "plain")
    generated = parse(["--data", "tinymath:train", "--output_dir", "x"])
    assert input_hashes(generated)["data"] is None and input_hashes(generated)["base"]


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
