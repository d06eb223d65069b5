"""The matrix: names and states of its runs, workers equal to the command, the statistics, the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ba_lora.errors import UserError
from ba_lora.experiments.figure import draw_terms
from ba_lora.experiments.matrix import read_experiment, tuning_runs
from ba_lora.experiments.statistics import mean_sd, paired_interval
from ba_lora.experiments.table import make_table

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "configs" / "experiments").glob("*.yaml"))

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
compare: {method: ba-lora, against: [lora]}
tuning: {seed: 7, data: "tinymath:validation", limit: 5, learning_rates: [1e-3, 0.002]}
"""


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.replace("CONFIG", str(ROOT / "configs/nlg/tiny.yaml")))
    return file


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_experiment_parses(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = read_experiment(file)
    assert len({run.folder for run in experiment.runs}) == len(experiment.runs) > 1
    compared = {experiment.compare["method"], *experiment.compare["against"]} if experiment.compare else set()
    assert experiment.evaluations and compared <= {run.method for run in experiment.runs}
    assert not experiment.tuning or tuning_runs(file).runs


def test_runs_have_stable_names_and_the_base_is_measured_once(small):
    experiment = read_experiment(small, "out")
    names = [str(run.folder) for run in experiment.runs]
    assert names == ["out/small/base"] + [f"out/small/{m}-s{s}" for m in ("lora", "ba-lora") for s in (42, 1024)]
    assert [run.name for run in read_experiment(small, "out", seeds=1).runs] == ["base", "lora-s42", "ba-lora-s42"]
    tuned = tuning_runs(small, "out")
    assert [run.name for run in tuned.runs][:2] == ["lora-lr0.001-s7", "lora-lr0.002-s7"]
    assert tuned.runs[0].arguments.learning_rate == 0.001 and tuned.runs[0].arguments.seed == 7


def test_bad_experiment_files_end_in_one_line(tmp_path):
    for text, message in [
        ("methds: {}", "unknown key 'methds', did you mean 'methods'"),
        ("name: x", "'config' is missing or empty"),
        ("[", "is not valid YAML"),
        ("- 1", "must hold the keys"),
    ]:
        (tmp_path / "e.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            read_experiment(tmp_path / "e.yaml")
    with pytest.raises(UserError, match="does not exist"):
        read_experiment(tmp_path / "none.yaml")


def test_mean_and_deviation_over_seeds():
    assert mean_sd([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_sd([5.0]) == (5.0, None)


def test_the_paired_interval_covers_a_known_difference_and_is_narrow_for_a_constant_one():
    random = np.random.default_rng(1)
    theirs = (random.random((3, 400)) < 0.5).astype(int)
    better = theirs.copy()
    wrong = np.flatnonzero(theirs.sum(0) == 0)[:40]
    better[:, wrong] = 1
    difference, low, high = paired_interval(better, theirs)
    assert difference == pytest.approx(len(wrong) / 400)
    assert 0 < low < difference < high < 2 * difference
    assert paired_interval(theirs, theirs) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="equal"):
        paired_interval(better, theirs[:2])


def test_the_paired_interval_holds_the_truth_about_95_times_in_100():
    random, held = np.random.default_rng(2), 0
    for trial in range(60):
        hard = random.random(200)
        theirs, ours = ((random.random((5, 200)) < chance).astype(int) for chance in (hard, hard * 0.9 + 0.05))
        _, low, high = paired_interval(ours, theirs, seed=trial)
        truth = (hard * 0.9 + 0.05 - hard).mean()
        held += low <= truth <= high
    assert held >= 52


def test_workers_do_the_runs_equal_to_the_command_and_a_second_call_does_nothing(small, tmp_path):
    words = [sys.executable, "-m", "ba_lora.experiments", "run", str(small), "--runs", str(tmp_path), "--seeds", "1"]
    threads = str(max(1, os.cpu_count() // 2))  # what one of two workers gets; sums then add up alike
    alike = os.environ | {"OMP_NUM_THREADS": threads}
    first = subprocess.run([*words, "--jobs", "2"], cwd=ROOT, env=alike, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "| ba-lora |" in first.stdout and "ba-lora − lora:" in first.stdout
    assert (tmp_path / "small" / "table.md").read_text() in first.stdout
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "3 finished runs are kept" in again.stdout

    command = [sys.executable, "train.py", "--config", "configs/nlg/tiny.yaml", "--limit", "64", "--progress", "false"]
    by_hand = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "hand")], cwd=ROOT, env=alike, capture_output=True, timeout=120
    )
    assert by_hand.returncode == 0
    run = tmp_path / "small" / "ba-lora-s42"
    assert _weights(run) == _weights(tmp_path / "hand")
    evaluation = [sys.executable, "-m", "eval.gsm8k", "--model", str(tmp_path / "hand"), "--limit", "12"]
    evaluation += ["--max_new_tokens", "96", "--output_dir", str(tmp_path / "score")]
    assert subprocess.run(evaluation, cwd=ROOT, env=alike, capture_output=True, timeout=120).returncode == 0
    scores = [json.loads((f / "score.json").read_text()) for f in (run / "eval" / "test", tmp_path / "score")]
    assert scores[0]["score"] == scores[1]["score"] and scores[0]["n"] == 12
    drawn = draw_terms(str(run))
    assert drawn.read_bytes()[:4] == b"\x89PNG"


def _weights(run):
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_failed_run_is_named_and_the_others_are_done(small, tmp_path):
    small.write_text(
        small.read_text().replace("lora: {method: lora, limit: 64", "lora: {method: lora, data: none.jsonl")
    )
    words = [sys.executable, "-m", "ba_lora.experiments", "run", str(small), "--runs", str(tmp_path), "--seeds", "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "lora-s42" in done.stdout and "data file none.jsonl does not exist" in done.stdout
    assert "error: 1 of 3 runs failed: lora-s42" in done.stderr
    assert (tmp_path / "small" / "ba-lora-s42" / "measures.json").exists()


def test_a_table_without_results_says_how_to_get_them(small, tmp_path):
    with pytest.raises(UserError, match="no run of .* has been measured; start with"):
        make_table(read_experiment(small, tmp_path))


def test_a_figure_needs_a_run(tmp_path):
    with pytest.raises(UserError, match="does not exist; give the folder of a training run"):
        draw_terms(str(tmp_path))
