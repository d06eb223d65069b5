"""Every command that writes a folder leaves a stranger's folder intact, and two commands never write into one folder at once.

The commands are found by their parsers: an option that may name an output is listed in WRITES, with a case, or in READS.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from ba_lora.errors import UserError
from ba_lora.experiments.matrix import Evaluation, read_experiment
from ba_lora.experiments.pool import do_run
from ba_lora.files import write_json
from tests.common import ROOT, command, finished_run

EXPERIMENT = """
name: small
config: CONFIG
methods: {lora: {method: lora}}
seeds: [42]
evaluate: {test: {data: "tinymath:test", limit: 4}}
tuning: {seed: 7, data: "tinymath:validation", limit: 5, learning_rates: [1e-3]}
"""
NAMES_AN_OUTPUT = re.compile(r"output|_dir$|_cache$|^runs?$|results|folder")
TINY = ["--config", "configs/nlg/tiny.yaml"]
SCORE_AGAIN = ["--rescore", "AWAY/given.jsonl"]

# (command, option) → its words; STRANGER is the stranger's folder, IN the folder that contains it, AWAY a separate folder.
WRITES = {
    ("train.py", "output_dir"): [*TINY, "--output_dir", "STRANGER"],
    ("train.py", "teacher_cache"): [*TINY, "--output_dir", "AWAY/run", "--teacher_cache", "STRANGER"],
    ("train.py", "decomposition_cache"): [*TINY, "--output_dir", "AWAY/run", "--decomposition_cache", "STRANGER"],
    ("tsne_visualization.py", "output_dir"): ["--redraw", "AWAY/points", "--output_dir", "STRANGER"],
    ("ba_lora.tiny.pretrain", "output"): ["--output", "STRANGER"],
    ("ba_lora.benchmark", "output"): ["--no_memory", "--output", "STRANGER"],
    ("ba_lora.benchmark.device_check", "out"): ["--device", "cpu", "--smoke", "--out", "STRANGER"],
    ("ba_lora.benchmark.train_body", "folder"): ["STRANGER", "--body", "tiny", "--device", "cpu"],
    ("ba_lora.data.tinymath", "output"): ["--split", "test", "--output", "STRANGER"],
    ("ba_lora.experiments.stereotypes", "output"): ["--output", "STRANGER"],
    ("ba_lora.card", "run"): ["STRANGER"],
    ("ba_lora.hub", "run"): ["STRANGER", "someone/some-model"],
    ("ba_lora.experiments run", "runs"): ["run", "AWAY/small.yaml", "--runs", "IN"],
    ("ba_lora.experiments tune", "runs"): ["tune", "AWAY/small.yaml", "--runs", "IN"],
    ("ba_lora.experiments table", "runs"): ["table", "AWAY/small.yaml", "--untuned", "--runs", "IN"],
    ("ba_lora.experiments table", "output"): ["table", "AWAY/small.yaml", "--untuned", "--output", "STRANGER"],
    ("ba_lora.experiments figure", "runs"): ["figure", "AWAY/small.yaml", "--runs", "IN"],
    ("ba_lora.experiments figure", "output"): ["figure", "AWAY/small.yaml", "--output", "STRANGER"],
    ("ba_lora.experiments collect", "results"): ["collect", "AWAY/small.yaml", "--results", "IN"],
    ("ba_lora.experiments report", "output"): [
        *("report", "configs/experiments/nlg-main-embedded.yaml", "--output", "STRANGER")
    ],
    ("ba_lora.experiments one", "config"): ["one", "configs/nlg/tiny.yaml", "--output_dir", "STRANGER"],
    **{
        (f"eval.{name}", "output_dir"): [*SCORE_AGAIN, "--output_dir", "STRANGER"]
        for name in (
            *("gsm8k", "hendrycks_math", "humaneval", "mbpp", "mt_bench"),
            *("bbq", "crows_pairs", "stereoset", "winobias", "winogender"),
        )
    },
    ("eval.retention", "output_dir"): ["--model", "tiny", "--base", "tiny", "--output_dir", "STRANGER"],
    ("eval.all", "output_dir"): ["tiny", "--output_dir", "STRANGER"],
    ("eval.glue", "output_dir"): [*SCORE_AGAIN, "--task", "cola", "--output_dir", "STRANGER"],
    ("eval.gluex", "output_dir"): ["--model", "AWAY/classifier", "--output_dir", "STRANGER"],
}
MORE = {  # other paths to the same options
    "a submission": ["eval.glue", "--model", "AWAY/classifier", "--submission", "--output_dir", "STRANGER"],
    "a model's own folder": ["eval.gsm8k", "--model", "tiny", "--output_dir", "STRANGER"],
    "the figure of a run": ["ba_lora.experiments", "figure", "AWAY/classifier", "--output_dir", "STRANGER"],
    "features": ["tsne_visualization.py", "--features_dir", "AWAY/classifier", "--output_dir", "STRANGER"],
    "the answers alone": ["eval.mt_bench", "--model", "tiny", "--generate_only", "--output_dir", "STRANGER"],
    "answers beside a thesis": ["eval.gsm8k", "--rescore", "STRANGER/generations.jsonl", "--output_dir", "STRANGER"],
}
READS = {
    ("tsne_visualization.py", "features_dir"),
    ("ba_lora.benchmark.device_table", "folder"),
    *(("ba_lora.experiments " + name, "runs") for name in ("collect", "report")),
    *(("ba_lora.experiments " + name, "results") for name in ("run", "tune", "table", "figure", "report")),
}


class Caught(SystemExit):
    """Raised when a command reaches its parser."""


def parsers(*words):
    """{name: parser} of a command, and of its subcommands."""
    caught, real = [], argparse.ArgumentParser.parse_known_args

    def catch(self, *arguments, **options):
        if not self.add_help:  # this parser only looks for --config
            return real(self, *arguments, **options)
        caught.append(self)
        raise Caught(0)

    with mock.patch("argparse.ArgumentParser.parse_known_args", catch):
        command(*words)
    name, (parser,) = words[-1], caught
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {f"{name} {key}": each for key, each in below[0].choices.items()} if below else {name: parser}


def commands():
    """The words of every command of the repository, that is, every file that ends in run_cli(main)."""
    for file in [*ROOT.glob("*.py"), *(ROOT / "ba_lora").rglob("*.py"), *(ROOT / "eval").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        is_parsed = "Parser(" in text or "BENCHMARK = " in text
        if "run_cli(main)" in text and (is_parsed or file == ROOT / "train.py" or "tsne" in file.name):
            parts = file.relative_to(ROOT).with_suffix("").parts
            module = ".".join(part for part in parts if part != "__main__")
            yield (file.name,) if len(parts) == 1 else ("-m", module)


def test_every_option_that_names_an_output_has_a_case():
    found = {name: parser for words in commands() for name, parser in parsers(*words).items()}
    options = {
        (name, action.dest)
        for name, parser in found.items()
        for action in parser._actions
        if NAMES_AN_OUTPUT.search(action.dest) or re.search(r"to write|folder for", action.help or "")
    }
    assert options | {("ba_lora.experiments one", "config")} == WRITES.keys() | READS
    assert len(found) > 18 and not WRITES.keys() & READS


def rich(folder):
    """Ordinary files, hidden ones, some with the names of temporary files, and links that lead out of the folder."""
    outside = folder.parent.parent / "outside"
    (folder / "work").mkdir(), outside.mkdir(exist_ok=True)
    for name in ("thesis.txt", ".bashrc", ".x.tmp", ".y.old", ".run.json.4711.tmp", "work/draft.txt", ".ba-lora.json"):
        (folder / name).write_text(f"my own {name}")
    (outside / "kept.txt").write_text("outside")
    (folder / ".adapter.4711.old").mkdir()
    (folder / ".adapter.4711.old" / "mine.txt").write_text("mine")
    for name in ("adapter", "checkpoints", "link"):
        (folder / name).symlink_to(outside)
    (folder / "dangling").symlink_to(outside / "nothing")


def hidden(folder):
    (folder / ".profile").write_text("mine")
    (folder / ".vim.tmp").mkdir()
    (folder / ".vim.tmp" / "work").write_text("mine")


def names_of_ours(folder):
    """File names that another tool, or its user, may use."""
    texts = {
        "run.json": {"config": {"lr": 1}, "status": "finished", "objective": "map"},
        "cache.json": {"complete": True},
    }
    texts |= {"score.json": {"benchmark": "mine", "metric": "accuracy", "score": 0.5}, "measures.json": {"scores": {}}}
    texts |= {"recipe.json": {"command": "bake"}, "tuning.json": {"best": {}}, "scores.json": {"scores": [1]}}
    texts |= {"benchmark.json": {"cases": []}, "config.json": {"model_type": "llama"}, "features.json": {"steps": []}}
    for name, content in texts.items():
        write_json(folder / name, content)
    for name in ("adapter", "model", "merged", "logs", "features", "checkpoints", "eval", "turns"):
        (folder / name).mkdir()
        (folder / name / "mine.txt").write_text("mine")
    for name in ("adapter/adapter_config.json", "model/config.json"):
        write_json(folder / name, {"mine": True})
    for name in (
        "table.csv",
        "table.md",
        "bars.png",
        "model.safetensors",
        "adapter_model.safetensors",
        "row.md",
        "CoLA.tsv",
    ):
        (folder / name).write_text("mine")
    (folder / "generations.jsonl").write_text('{"id": 1, "completion": "mine", "reference": "1"}\n')


def seen(place):
    """Everything about the content of `place`: kinds, modes, times, contents."""
    found = {}
    for path in [place, *sorted(place.rglob("*"))]:
        state = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(place))] = (state.st_mode, state.st_mtime_ns, state.st_ino, content)
    return found


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    """Inputs for the commands, so that they get as far as possible."""
    folder = tmp_path_factory.mktemp("away")
    (folder / "small.yaml").write_text(EXPERIMENT.replace("CONFIG", str(ROOT / "configs/nlg/tiny.yaml")))
    (folder / "classifier").mkdir()
    finished_run(folder / "classifier")
    record = folder / "classifier" / "run.json"
    record.write_text(record.read_text().replace("{", '{"task": {"name": "cola", "labels": ["0", "1"]},', 1))
    (folder / "given.jsonl").write_text('{"id": 1, "completion": "The answer is: 1", "reference": "1"}\n')
    return folder


CASES = {f"{name} {option}": [*name.split()[:1], *words] for (name, option), words in WRITES.items()} | MORE


@pytest.mark.parametrize("case", CASES)
def test_a_strangers_folder_survives_every_command(case, tmp_path, away):
    name, *words = CASES[case]
    start = (name,) if name.endswith(".py") else ("-m", name)
    known = [
        option for parser in parsers(*start).values() for action in parser._actions for option in action.option_strings
    ]
    if name == "ba_lora.experiments":
        known = {"run": ["--overwrite"], "tune": ["--overwrite"], "one": ["--overwrite", "--resume"]}.get(words[0], [])
    for fill in (rich, hidden, names_of_ours):
        home = tmp_path / fill.__name__ / "home"
        stranger = home / "small"
        stranger.mkdir(parents=True)
        fill(stranger)
        before = seen(tmp_path)
        for more in ((), *([flag] for flag in ("--overwrite", "--resume") if flag in known)):
            places = {"STRANGER": str(stranger), "AWAY": str(away), "IN": str(home)}
            given = [re.sub("STRANGER|AWAY|^IN$", lambda found: places[found[0]], word) for word in words]  # noqa: B023
            done = command(*start, *given, *more)
            lines = done.stderr.strip().splitlines()
            assert done.returncode == 2, (fill.__name__, more, done)
            assert lines[-1].startswith("error: ") and str(stranger) in lines[-1] and "Traceback" not in done.stderr
            assert re.search(
                r"name (another )?(folder|a file)|is (no|not a) run folder|another run folder", lines[-1]
            ), lines[-1]
            assert seen(tmp_path) == before, (fill.__name__, more)
    assert not (away / "run").exists()


@pytest.mark.parametrize("fill", [rich, hidden, names_of_ours])
def test_a_strangers_folder_in_the_place_of_a_run_survives_a_matrix(fill, tmp_path, away, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (away / "small.yaml").read_text().replace("{lora:", "{base: {}, lora:")
    (tmp_path / "small.yaml").write_text(text)
    for run in read_experiment(tmp_path / "small.yaml", tmp_path / "home", tuned=False).runs:
        run.folder.mkdir(parents=True)
        fill(run.folder)
        before = seen(tmp_path)
        with pytest.raises(UserError, match=f"{run.name} is not empty and holds no run"):
            do_run(run, [Evaluation("test", "tinymath:test", 1)], retrain=True)
        assert seen(tmp_path) == before


HOLD = """
import os, sys, time
from ba_lora.folders.ownership import claimed
with claimed(sys.argv[1], sys.argv[2]):
    if "fork" not in sys.argv or not os.fork():
        print("held", flush=True)
    time.sleep(600)
"""


def hold(folder, kind, *more):
    """A process that holds `folder` until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), kind, *more], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


TOGETHER = {
    "run": ["train.py", *TINY, "--output_dir", "FOLDER"],
    "evaluation": ["-m", "eval.gsm8k", "--model", "tiny", "--output_dir", "FOLDER"],
    "evaluations": ["-m", "eval.all", "tiny", "--output_dir", "FOLDER"],
    "submission": ["-m", "eval.glue", "--model", "AWAY/classifier", "--submission", "--output_dir", "FOLDER"],
    "experiment": ["-m", "ba_lora.experiments", "run", "AWAY/small.yaml", "--untuned", "--runs", "HOME"],
    "pre-trained model": ["-m", "ba_lora.tiny.pretrain", "--output", "FOLDER"],
    "benchmark": ["-m", "ba_lora.benchmark", "--output", "FOLDER"],
    "device check": ["-m", "ba_lora.benchmark.device_check", "--device", "cpu", "--smoke", "--out", "FOLDER"],
    "t-SNE": ["tsne_visualization.py", "--redraw", "AWAY/points", "--output_dir", "FOLDER"],
    "results": ["-m", "ba_lora.experiments", "collect", "AWAY/small.yaml", "--results", "HOME"],
}


@pytest.mark.parametrize("kind", TOGETHER)
def test_a_second_command_in_a_folder_is_refused_and_names_the_first_until_it_is_killed(kind, tmp_path, away):
    folder = tmp_path / ("small-untuned" if kind == "experiment" else "small")
    places = {"FOLDER": str(folder), "AWAY": str(away), "HOME": str(tmp_path)}
    words = [re.sub("FOLDER|AWAY|HOME", lambda found: places[found[0]], word) for word in TOGETHER[kind]]
    first = hold(folder, kind)
    try:
        before = seen(tmp_path)
        done = command(*words)
        assert done.returncode == 2 and seen(tmp_path) == before
        holder = f"{folder} is in use by process {first.pid} on {socket.gethostname()}"
        assert holder in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr
    finally:
        first.kill()
        first.wait()
    from ba_lora.folders.ownership import claimed

    with claimed(folder, kind):
        assert len(list(folder.iterdir())) == 1
    assert list(folder.iterdir()) == []


def test_a_child_that_outlives_a_killed_process_does_not_keep_its_folder(tmp_path):
    from ba_lora.folders.ownership import claimed

    first = hold(tmp_path / "run", "run", "fork")
    group = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    first.kill()
    first.wait()
    try:
        assert len(group) == 1
        with claimed(tmp_path / "run", "run"):
            pass
    finally:
        os.kill(int(group[0]), signal.SIGKILL)


@pytest.mark.slow
def test_two_trainings_started_at_once_in_one_folder_are_one_run_and_one_line(tmp_path):
    words = [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "configs/nlg/tiny.yaml"), "--limit", "640"]
    words += ["--output_dir", str(tmp_path / "run"), "--logging_steps", "1", "--progress", "false"]
    both = [subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.wait(): process.stderr.read() for process in both}
    assert sorted(said) == [0, 2]
    assert re.search(r"error: --output_dir .*run is in use by process \d+ on ", said[2].strip().splitlines()[-1])
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))
    killed = subprocess.Popen([*words, "--overwrite"], cwd=ROOT)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / ".ba-lora.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert subprocess.run([*words, "--overwrite"], cwd=ROOT).returncode == 0
    assert not (tmp_path / "run" / ".ba-lora.json").exists()
