"""Which runs of a matrix count as done, are resumed or start anew when inputs or options have changed."""

import os
import shutil
from pathlib import Path

import pytest

from ba_lora.experiments.matrix import read_experiment
from ba_lora.experiments.pool import command_of
from ba_lora.files import read_json, write_json
from ba_lora.training.inputs import input_hashes
from tests.training.resuming import change_one_value, edit_json, rows, swap_two_tokens, write_lines


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
