"""The matrix: names and states of its runs, workers equal to the command, the statistics, the table."""

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch

from ba_lora.errors import UserError
from ba_lora.experiments.figures.run import draw_terms
from ba_lora.experiments.matrix import read_experiment, tuning_runs
from ba_lora.experiments.results import of_run
from eval import gsm8k
from tests.common import command

ROOT = Path(__file__).parents[2]

SMALL = """
name: small
config: CONFIG
methods:
  base: {}
  lora: {method: lora, limit: 64, learning_rate: 4e-3}
  ba-lora: {method: ba-lora, limit: 64}
seeds: [42, 1024]
evaluate:
  test: {data: "tinymath:test", limit: 12}
reference: lora
tuning: {seed: 7, data: "tinymath:validation", limit: 5, learning_rates: [1e-3, 0.002]}
"""


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.replace("CONFIG", str(ROOT / "configs/nlg/tiny.yaml")))
    return file


def test_runs_have_stable_names_and_the_base_is_measured_once(small):
    experiment = read_experiment(small, "out")
    names = [str(run.folder) for run in experiment.runs]
    assert names == ["out/small/base"] + [f"out/small/{m}-s{s}" for m in ("lora", "ba-lora") for s in (42, 1024)]
    assert [run.name for run in read_experiment(small, "out", seeds=1).runs] == ["base", "lora-s42", "ba-lora-s42"]
    tuned = tuning_runs(small, "out")
    assert [run.name for run in tuned.runs] == ["ba-lora-lr0.001-s7", "ba-lora-lr0.002-s7"]  # lora has its own rate
    assert tuned.runs[0].arguments.learning_rate == 0.001 and tuned.runs[0].arguments.seed == 7


AXES = """
name: axes
config: CONFIGS/{model}-{data}-v5.yaml
models: {llama-2-7b: {}, mistral-7b: {config: "CONFIGS/mistral-7b-{data}-v5-r64.yaml"}}
data: [metamath, code]
methods: {lora: {method: lora, init: null}, ba-lora: {method: ba-lora}}
vary: {rank: [1, 2], batch: {"64": {effective_batch_size: 64}}}
seeds: [42, 1024]
rates_of: other
"""


@pytest.fixture
def axes(tmp_path):
    file = tmp_path / "axes.yaml"
    file.write_text(AXES.replace("CONFIGS", str(ROOT / "configs/nlg")))
    return file


def test_models_data_methods_and_varied_values_make_the_runs(axes):
    experiment = read_experiment(axes, "out")
    assert len(experiment.runs) == 2 * 2 * 2 * 4 * 2 == len({run.name for run in experiment.runs})
    run = next(run for run in experiment.runs if run.name == "mistral-7b-code-ba-lora-rank=2-s1024")
    assert run.variant == ("mistral-7b", "ba-lora", ("rank", "2")) and run.data == "code"
    assert run.arguments.rank == 2 and run.arguments.seed == 1024 and run.benchmarks == ["humaneval", "mbpp"]
    assert run.words[0].endswith("mistral-7b-code-v5-r64.yaml") and run.folder == Path("out/axes") / run.name
    plain = next(run for run in experiment.runs if run.name == "mistral-7b-code-ba-lora-s1024")
    assert plain.arguments.rank == 64 and plain.arguments.effective_batch_size == 128
    other = next(run for run in experiment.runs if run.name == "llama-2-7b-metamath-lora-batch=64-s42")
    assert other.arguments.effective_batch_size == 64 and other.model == "meta-llama/Llama-2-7b-hf"
    assert len(experiment.variants) == 2 * 2 * 4


def test_a_chosen_rate_fills_what_no_other_gives(axes, small, tmp_path):
    (tmp_path / "results/other").mkdir(parents=True)
    rates = {"mistral-7b-code-ba-lora": 0.5}
    (tmp_path / "results/other/tuning.json").write_text(json.dumps({"best": rates}))
    experiment = read_experiment(axes, "out", results=tmp_path / "results")
    chosen = {run.name for run in experiment.runs if run.arguments.learning_rate == 0.5}
    assert experiment.is_tuned and len(chosen) == 8 and all("mistral-7b-code-ba-lora" in name for name in chosen)
    untuned = read_experiment(axes, "out", results=tmp_path / "results", tuned=False)
    assert not untuned.is_tuned and untuned.home == Path("out/axes-untuned")
    assert all(run.arguments.learning_rate == 2e-5 for run in untuned.runs)
    (tmp_path / "results/small").mkdir()
    (tmp_path / "results/small/tuning.json").write_text(json.dumps({"best": {"lora": 0.5, "ba-lora": 0.25}}))
    rates = {
        run.method: run.arguments.learning_rate for run in read_experiment(small, results=tmp_path / "results").runs[1:]
    }
    assert rates == {"lora": 4e-3, "ba-lora": 0.25}  # lora's is given in the file


def test_rates_of_another_experiment_must_be_there(axes, capsys):
    done = command("-m", "ba_lora.experiments", "run", str(axes))
    assert done.returncode == 2 and "experiments tune configs/experiments/other.yaml (or add --untuned)" in done.stderr


def test_bad_experiment_files_end_in_one_line(tmp_path):
    for text, message in [
        ("methds: {}", "unknown key 'methds', did you mean 'methods'"),
        ("name: x", "'config' is missing or empty"),
        ("[", "is not valid YAML"),
        ("- 1", "must hold the keys"),
        ("compare: {}", "unknown key 'compare'"),
    ]:
        (tmp_path / "e.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            read_experiment(tmp_path / "e.yaml")
    with pytest.raises(UserError, match="does not exist"):
        read_experiment(tmp_path / "none.yaml")


@pytest.mark.slow
def test_workers_do_the_runs_equal_to_the_command_keep_what_is_done_and_name_what_failed(small, tmp_path, monkeypatch):
    # Forked, because a new process imports its libraries for 10 s; test_matrix_signals.py has the spawned ones. A forked process has one
    # thread, and sums are to be equal here and there.
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    torch.set_num_threads(1)
    whole = small.read_text()
    small.write_text(whole.replace("lora: {method: lora, limit: 64", "lora: {method: lora, data: none.jsonl"))
    words = ["-m", "ba_lora.experiments", "run", str(small), "--runs", str(tmp_path), "--seeds", "1", "--jobs", "1"]
    first = command(*words)
    assert first.returncode == 2 and "error: 1 of 3 runs failed: lora-s42" in first.stderr
    assert "validation accuracy in percent, seed 7, 5 problems" in first.stdout  # rates had to be chosen first
    assert "data file none.jsonl does not exist" in first.stdout and "| ba-lora | here | 1 |" in first.stdout
    again = command(*words)
    assert again.returncode == 2 and "2 finished runs are kept" in again.stdout
    assert "lora-s42 failed before (--retry tries again): data file none.jsonl" in again.stdout
    small.write_text(whole)
    retried = command(*words, "--retry")
    assert retried.returncode == 0 and "2 finished runs are kept" in retried.stdout
    assert "| ba-lora − lora |" in retried.stdout and "- ba-lora (" in retried.stdout  # its answers
    assert (tmp_path / "small" / "table.md").read_text() in retried.stdout

    chosen = json.loads((tmp_path / "small" / "tuning.json").read_text())
    assert set(chosen["scores"]["ba-lora"]) == {"0.001", "0.002"} and list(chosen["best"]) == ["ba-lora"]
    by_hand = ["train.py", "--config", "configs/nlg/tiny.yaml", "--limit", "64", "--progress", "false"]
    by_hand += ["--learning_rate", str(chosen["best"]["ba-lora"]), "--output_dir", str(tmp_path / "hand")]
    assert command(*by_hand).returncode == 0
    run = tmp_path / "small" / "ba-lora-s42"
    assert _weights(run) == _weights(tmp_path / "hand")
    evaluation = ["--model", str(tmp_path / "hand"), "--limit", "12", "--max_new_tokens", "96"]
    gsm8k.main([*evaluation, "--output_dir", str(tmp_path / "score")])
    scores = [json.loads((f / "score.json").read_text()) for f in (run / "eval" / "test", tmp_path / "score")]
    assert scores[0]["score"] == scores[1]["score"] and scores[0]["n"] == 12
    drawn = draw_terms(str(run))
    assert drawn.read_bytes()[:4] == b"\x89PNG"


def _weights(run):
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_matrix_that_is_killed_twice_ends_with_the_results_of_one_that_is_not(small, tmp_path):
    small.write_text(small.read_text().replace("limit: 64", "limit: 640"))  # 20 steps per run
    random = Random(0)  # the times of the kills
    words = [sys.executable, "-m", "ba_lora.experiments", "run", str(small), "--untuned", "--jobs", "2", "--runs"]
    started = time.monotonic()
    whole = subprocess.run([*words, str(tmp_path / "whole")], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert whole.returncode == 0, whole.stderr[-2000:]
    length = time.monotonic() - started
    for _ in range(2):
        killed = subprocess.Popen([*words, str(tmp_path / "killed")], cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(length * random.uniform(0.3, 0.6))
        assert killed.poll() is None, "the matrix had ended before it was killed"
        killed.kill()  # SIGKILL
        killed.wait()
    done = subprocess.run([*words, str(tmp_path / "killed")], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    pair = [read_experiment(small, tmp_path / name, tuned=False) for name in ("whole", "killed")]
    for one, other in zip(*(experiment.runs for experiment in pair), strict=True):
        contents = [of_run(run, experiment) for run, experiment in zip((one, other), pair, strict=True)]
        for content in contents:  # values that depend on the load of the machine
            for key in ("train_seconds", "peak_memory"):
                content["training"].pop(key, None)
        assert contents[0] == contents[1], one.name
        if one.arguments:
            assert _weights(one.folder) == _weights(other.folder)


def test_a_figure_needs_a_run(tmp_path):
    with pytest.raises(UserError, match="does not exist; give the folder of a training run"):
        draw_terms(str(tmp_path))
