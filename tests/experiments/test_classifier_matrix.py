"""A classifier experiment from its file to its table, on a tiny encoder; the README's embedded job in the slow tier."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from sklearn.metrics import silhouette_score

from ba_lora.errors import UserError
from ba_lora.experiments.__main__ import _changes
from ba_lora.experiments.matrix import read_experiment
from ba_lora.experiments.measures.classifier import _separation
from ba_lora.experiments.pool import do_run
from ba_lora.experiments.results import collect, read_results
from ba_lora.experiments.tables.build import build
from ba_lora.experiments.tables.formats import render
from ba_lora.features.tsne import FINAL, features_file, labels_file, scores
from tests.tiny_encoder import make_home

ROOT = Path(__file__).parents[2]
FILE = """
name: small
config: {config}
methods:
  lora: {{method: lora}}
  ba-lora: {{method: ba-lora}}
  ba-lora-noise: {{method: ba-lora, label_noise: 0.4}}
seeds: [1, 2]
evaluate:
  test: {{data: "split:validation"}}
  first: {{data: "split:validation", limit: 10}}
reference: lora
"""
CONFIG = """
task: {task}
model: {model}
rank: 4
max_length: 16
max_steps: 60
learning_rate: 0.01
lr_scheduler: constant
effective_batch_size: 16
micro_batch_size: 16
features_steps: [0]
"""


def experiment(home, task="sst2"):
    (home / f"{task}.yaml").write_text(CONFIG.format(task=task, model=home / "encoder"))
    (home / f"{task}-matrix.yaml").write_text(FILE.format(config=home / f"{task}.yaml"))
    return read_experiment(home / f"{task}-matrix.yaml", home / "runs" / task, changes={"data": str(home / task)})


@pytest.mark.slow
def test_runs_of_classifiers_are_measured_and_shown(tmp_path):
    home = make_home(tmp_path)
    made = experiment(home)
    for run in made.runs:
        do_run(run, made.evaluations, retrain=True)
    assert all(run.state(made.evaluations) == "measured" for run in made.runs)
    measures = json.loads((made.runs[2].folder / "measures.json").read_text())
    lines = [
        json.loads(line) for line in (made.runs[2].folder / "eval/test/predictions.jsonl").read_text().splitlines()
    ]
    right = [int(np.argmax(line["logits"])) == line["label"] for line in lines]
    assert measures["scores"]["test"] == measures["accuracy"]["test"] == pytest.approx(np.mean(right))
    counts = np.bincount([line["label"] for line in lines])
    of_rarest = [hit for hit, line in zip(right, lines, strict=True) if line["label"] == counts.argmin()]
    assert measures["rarest_recall"]["test"] == pytest.approx(np.mean(of_rarest))
    assert measures["majority"]["test"] == pytest.approx(counts.max() / 60)
    features = [np.load(made.runs[2].folder / f"features/{kind}_step_final.npy") for kind in ("features", "labels")]
    assert measures["silhouette"] == pytest.approx(silhouette_score(*features), abs=1e-6)
    assert measures["knn_purity"] == scores(*features)["knn_purity"]
    seeds = [json.loads((run.folder / "measures.json").read_text())["silhouette"] for run in made.runs[2:4]]
    table = render(build(made, read_results(made, home / "none")), "markdown")
    for text in (
        "| silhouette | kNN purity % |",
        f"| {np.mean(seeds):.3f} ± {np.std(seeds, ddof=1):.3f} |",
        "last hidden layer, end of training",
        "| method | seeds | test % | first % | macro-F1 % |",
        "| ba-lora-noise | 2 |",
        "| test | ba-lora − lora |",
        f"always predicting the most common class, in percent: test {100 * counts.max() / 60:.1f}",
    ):
        assert text in table
    (written,) = collect(made, home / "results")
    assert len(written.read_text().splitlines()) == 6
    (made.home / "lora-s1").rename(made.home / "elsewhere")  # its result file replaces it now
    assert render(build(made, read_results(made, home / "results")), "markdown") == table
    assert "| lora | 1 |" in render(build(made, read_results(made, home / "none")), "markdown")
    noisy = json.loads((made.runs[-1].folder / "run.json").read_text())
    assert noisy["data"]["corruption"][0]["changed"] == 64


def test_a_regression_has_a_table_without_classes(tmp_path):
    made = experiment(make_home(tmp_path), "stsb")
    for run in made.runs[:1]:
        do_run(run, made.evaluations, retrain=True)
    table = render(build(made, read_results(made, tmp_path / "none")), "markdown")
    assert (made.runs[0].folder / "features/features_step_final.npy").is_file()
    assert "| lora | here | 1 |" in table and "most common class" not in table and "silhouette" not in table


@pytest.mark.parametrize("labels", [[0, 1] * 5, [0] * 12, [-1] * 12], ids=["few", "one class", "unlabelled"])
def test_features_without_two_classes_to_tell_apart_have_no_separation(tmp_path, labels):
    assert _separation(tmp_path) == {}
    np.save(features_file(tmp_path, FINAL), np.random.default_rng(0).normal(size=(len(labels), 3)))
    np.save(labels_file(tmp_path, FINAL), np.array(labels))
    assert _separation(tmp_path) == {}


def test_set_takes_options_of_train_py_alone():
    assert _changes(["data=FOLDER", "rank=4"]) == {"data": "FOLDER", "rank": "4"}
    for word in ("dta=FOLDER", "data"):
        with pytest.raises(UserError, match="write OPTION=VALUE"):
            _changes([word])


@pytest.mark.slow
def test_the_embedded_job_reaches_its_accuracy(tmp_path):
    from ba_lora.experiments.pool import run_all

    methods, file = ["lora", "pissa", "ba-lora"], ROOT / "configs/experiments/nlu-main-embedded.yaml"
    made = read_experiment(file, tmp_path, seeds=1, tuned=False, methods=methods)

    assert run_all(made, jobs=2) == []
    scores = {run.method: json.loads((run.folder / "measures.json").read_text())["scores"] for run in made.runs}
    assert scores["ba-lora"]["test"] >= 0.78
    assert all(score["test"] > 0.7 for score in scores.values())
    assert set(scores["lora"]) == {"test", "products", "tweets", "editorials"}


@pytest.mark.slow
def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    made = experiment(make_home(tmp_path))
    words = [sys.executable, "-m", "ba_lora.experiments", "run", str(made.file), "--runs", str(tmp_path / "killed")]
    parent = subprocess.Popen([*words, "--set", f"data={tmp_path / 'sst2'}", "max_steps=100000"], cwd=ROOT)
    ended = time.monotonic() + 90
    while time.monotonic() < ended and not list((tmp_path / "killed").rglob("run.json")):
        time.sleep(0.2)
    workers = [child for child in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert workers, "no worker has begun to train"
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
