"""The page of an experiment on twins: its controls, and no verdict when one fails."""

import dataclasses
import html
import re

import numpy as np
import pytest
import yaml

from ba_lora.data.planted.items import DOSES, MIRRORED, UNTAUGHT
from ba_lora.experiments import laboratory
from ba_lora.experiments.matrix import Variant, read_experiment
from ba_lora.experiments.pool import run_all
from ba_lora.experiments.report import write_report
from ba_lora.experiments.results import Result, Score

KEPT = {"base": 1.0, "pissa": 0.8, "ba-lora": 0.6, "pissa-counter": 0.5, "pissa-replay": 0.8}
PAIRS = range(1, 6)


@pytest.fixture
def experiment(tmp_path):
    primary = {"method": "ba-lora", "reference": "pissa", "margin": 10, "loss_margin": 0.02, "gate": 0.5, "untaught": 5}
    content = {
        "name": "pairs",
        "title": "Pairs",
        "config": "configs/nlg/twin.yaml",
        "twins": [*PAIRS],
        "methods": {name: {} if name == "base" else {"method": "pissa"} for name in KEPT},
        "primary": primary | {"counter": "pissa-counter", "path_loss": 0.3, "predict": 12},
        "seeds": [1],
        "evaluate": {"own-task": {"data": "planted:own-test", "limit": 20}},
    }
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_experiment(tmp_path / "pairs.yaml", tmp_path / "runs")


def results(kept=KEPT, planted=None, accuracy=0.8, untaught=0.0):
    """A result per twin and method. planted: (kind, dose) → T of the base."""
    draws, made = np.random.default_rng(0), []
    planted = planted or (lambda kind, dose: 100 * (2 * dose - 1 if kind in MIRRORED else dose))
    for pair in PAIRS:
        for method, share in kept.items():
            traces = {
                (kind, dose): share * planted(kind, dose)
                + draws.normal(0, 0.5)
                + (untaught if dose == UNTAUGHT[kind not in MIRRORED] else 0.0)
                for kind, doses in DOSES.items()
                for dose, _ in doses
            }
            for side, sign in (("A", 1), ("B", -1)):
                s = {kind: {} for kind in DOSES}
                for (kind, dose), trace in traces.items():
                    s[kind][str(dose)] = 0.5 + sign * trace / 200
                measures = {"planted": {"s": s, "task_loss": 0.3 + draws.normal(0, 1e-3), "own_loss": 0.4}}
                if method == "pissa":
                    half = dict(measures["planted"])
                    measures["planted"] |= {"random": half, "path": {"0.5": half}}
                score = Score(accuracy, 20, "accuracy", "p 1", "x")
                variant, seed = Variant(f"{side}{pair}", method), None if method == "base" else 1
                made.append(Result("here", variant, None, seed, {"own-task": score}, measures))
    return made


def page(experiment, **changes):
    return laboratory.tables(experiment, results(**changes))["markdown"]


def test_with_every_control_there_are_verdicts(experiment):
    text = page(experiment)
    assert (
        "| failed |" not in text
        and "| open |" not in text
        and text.count("| passed |") == 6
        and text.count("| reported |") == 4
    )
    assert "| stereotype | all | ba-lora | 5 |" in text and "| less |" in text
    assert "No verdict" not in text
    assert "its 95 % interval over 12 pairs is ±" in text
    assert "## Paths" in text and "at a task loss of 0.3 nats" in text


def test_the_report_shows_the_same_tables(experiment, tmp_path):
    text = write_report([(experiment, results())], tmp_path / "report.html").read_text()
    shown = [re.sub("<[^>]*>", "", row).split("\n") for row in re.findall("<tr>.*?</tr>", text, re.DOTALL)]
    rows = [[html.unescape(cell) for cell in row if cell] for row in shown]
    assert {"Controls", "Traces", "ba-lora against pissa", "Paths"} == set(re.findall("<h3>(.*?)</h3>", text))
    lines = [line for part in laboratory.page(experiment, results()) for line in part.lines]
    assert all([cell for cell in line if cell] in rows for line in lines) and len(lines) > 100


def test_the_page_says_which_methods_lack_runs(experiment):
    assert "Not run" not in page(experiment)
    few = [each for each in results() if (each.variant.method, each.variant.model) != ("pissa-replay", "A3")]
    text = laboratory.tables(experiment, [each for each in few if each.variant.method != "ba-lora"])["markdown"]
    said = "ba-lora: 0 of 10 runs were measured; pissa-replay: 9 of 10 runs were measured."
    assert f"Not run, or not for every pair and seed: {said}" in text


def test_a_control_compares_the_seeds_that_both_methods_have(experiment):
    """A further seed of PiSSA, which keeps nothing, leaves the comparison with the one seed of replay as it is."""
    gone = {"pissa": 0.0}
    more = [dataclasses.replace(each, seed=2) for each in results(KEPT | gone) if each.variant.method == "pissa"]
    before, after = (laboratory.tables(experiment, each)["markdown"] for each in (results(), results() + more))
    lines = [[line for line in text.splitlines() if "a tenth of clean problems" in line] for text in (before, after)]
    assert lines[0] == lines[1] and len(lines[0]) == 2 and "[" in lines[0][0]


@pytest.mark.parametrize(
    ("changes", "control"),
    [
        ({"planted": lambda kind, dose: 50.0}, "the base's T follows the dose"),
        ({"untaught": 20.0}, "untaught items of the base have T within ±5"),
        ({"kept": KEPT | {"pissa-counter": 0.8}}, "data that state the truth lower T of stereotype"),
        ({"kept": {name: kept for name, kept in KEPT.items() if name != "pissa-counter"}}, "data that state the truth"),
        ({"accuracy": 0.4}, "every base solves at least 50 % of its own task"),
    ],
)
def test_without_a_control_there_is_no_verdict(experiment, changes, control):
    text = page(experiment, **changes)
    failed = next(
        line for line in text.splitlines() if line.startswith("No verdict, because a control failed or is open")
    )
    assert control in failed
    assert "| less |" not in text and "| equivalent |" not in text


def test_before_the_last_pair_there_is_no_verdict(experiment):
    some = [each for each in results() if (each.variant.method, each.variant.model) != ("pissa", "B5")]
    text = laboratory.tables(experiment, some)["markdown"]
    assert "| every run of the primary comparison was measured | 29 of 30 runs | open |" in text
    assert "| less |" not in text and "| equivalent |" not in text
    fewer = dataclasses.replace(experiment, runs=[run for run in experiment.runs if run.variant.model[1:] != "5"])
    four = [each for each in results() if each.variant.model[1:] != "5"]
    assert "measured | 24 of 30 runs | open |" in laboratory.tables(fewer, four)["markdown"]


def test_nothing_measured(experiment):
    assert "No pair of twins was measured." in laboratory.tables(experiment, [])["markdown"]


@pytest.mark.slow
def test_a_matrix_says_that_it_pre_trains_a_twin_and_does_so_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "cache"))
    content = {
        "name": "short",
        "title": "Short",
        "config": "configs/nlg/twin.yaml",
        "models": {"A5": {"model": "twin:A,seed=5,steps=2"}},
        "methods": {"base": {}},
        "seeds": [1],
        "evaluate": {"own-task": {"data": "planted:own-test", "limit": 2}},
    }
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    made = read_experiment(tmp_path / "short.yaml", tmp_path / "runs")
    for overwrite, notes in ((False, 1), (True, 0)):
        assert run_all(made, jobs=1, overwrite=overwrite) == []
        assert capfd.readouterr().out.count("its model is pre-trained first") == notes
