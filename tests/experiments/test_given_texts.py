"""Experiments on given texts: evaluations and rates, differences against numpy, which scores move, and a run from end to end."""

import csv
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from ba_lora.errors import UserError
from ba_lora.experiments import given_texts, pool
from ba_lora.experiments import results as results_module
from ba_lora.experiments.__main__ import main
from ba_lora.experiments.figures.experiment import compose
from ba_lora.experiments.item_values import items_of
from ba_lora.experiments.matrix import Variant, read_experiment, tuning_runs
from ba_lora.experiments.report import write_report
from ba_lora.experiments.results import Result, Score, collect, read_results
from ba_lora.experiments.tables import given_texts as tables
from ba_lora.experiments.tables.build import build, marks
from tests.eval.json_lines import write

FILE = """
name: small
title: Small
config: configs/nlg/tiny.yaml
methods:
  base: {}
  lora: {method: lora}
  pissa: {method: pissa}
seeds: [42, 1024]
evaluate:
  crows_pairs: {data: "benchmark:crows_pairs:scored"}
  solutions: {data: "solutions:gsm8k", limit: 3}
margins: {crows_pairs: 5}
"""
ABLE = {"verdict": "able", "held_out_loss": 3.2, "word_order": 0.9, "own": None, "own_name": None}


def read(tmp_path, text=FILE, **options):
    file = tmp_path / "small.yaml"
    file.write_text(text)
    return read_experiment(file, tmp_path / "runs", **options)


def result(method, seed, items, metric="pct_stereotype", column="crows_pairs", ability=ABLE):
    items = np.array(items, dtype=float)
    score = Score(float(np.nanmean(items)), len(items), metric, "signed 1", "h", None, items, ability)
    return Result("here", Variant("tiny", method), None, seed, {column: score})


# Files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("benchmark:crows", "benchmark 'crows' is not known, did you mean 'crows_pairs'"),
        ("benchmark:bbq:score", "half 'score' is not known, did you mean 'scored'"),
        ("solutions:math", "solutions of 'math' is not known"),
        ("retention:all", "evaluation 'retention:all' takes nothing after retention"),
    ],
)
def test_what_an_evaluation_names_must_be_known(data, message):
    for known in ("benchmark:bbq", "benchmark:bbq:scored", "solutions:gsm8k", "retention", "held-out"):
        given_texts.check(known)
    with pytest.raises(UserError, match=message):
        given_texts.check(data)


def test_answers_and_given_texts_are_not_mixed(tmp_path):
    assert given_texts.are_given(read(tmp_path).evaluations)
    assert not given_texts.are_given([])
    with pytest.raises(UserError, match="cannot mix evaluations on given texts"):
        read(tmp_path, FILE.replace('"solutions:gsm8k"', '"tinymath:test"'))


TUNING = "tuning: {seed: 7, data: held-out, max_steps: 2, learning_rates: {lora: [0.001, 0.002], pissa: [0.003]}}\n"


def test_each_method_has_its_own_rates_and_the_trials_their_own_steps(tmp_path):
    (tmp_path / "small.yaml").write_text(FILE + TUNING)
    made = tuning_runs(tmp_path / "small.yaml", tmp_path / "runs", {"limit": 8})
    found = [
        (run.method, run.arguments.learning_rate, run.arguments.max_steps, run.arguments.limit) for run in made.runs
    ]
    assert found == [("lora", 0.001, 2, 8), ("lora", 0.002, 2, 8), ("pissa", 0.003, 2, 8)]
    with pytest.raises(UserError, match="'learning_rates' has none for pissa"):
        read(tmp_path, FILE + TUNING.replace(", pissa: [0.003]", ""))
    with pytest.raises(UserError, match="'max_steps' must be a whole number of at least 1; it is 0"):
        read(tmp_path, FILE + TUNING.replace("max_steps: 2", "max_steps: 0"))
    with pytest.raises(UserError, match="'stereotypes' must name two methods"):
        read(tmp_path, FILE + "stereotypes: {pro: lora}\n")


# Differences


def test_a_difference_is_over_the_items_and_seeds_of_both(tmp_path):
    draw, nan = np.random.default_rng(0), math.nan
    base = draw.integers(2, size=40).astype(float)
    ours = {seed: draw.integers(2, size=40).astype(float) for seed in (42, 1024)}
    ours[42][3] = base[5] = nan
    results = [result("base", None, base), *(result("lora", seed, items) for seed, items in ours.items())]
    (made,) = tables.differences(read(tmp_path), results)
    there = [number for number in range(40) if number not in (3, 5)]
    expected = np.mean([[ours[seed][n] - base[n] for n in there] for seed in ours])
    assert (made.method, made.other, made.seeds, made.items) == ("lora", "base", 2, 38)
    assert made.difference == pytest.approx(expected) and made.means[0] == pytest.approx(np.mean(base[there]))
    assert made.interval[0] < expected < made.interval[1] and made.corrected == made.p


def test_each_method_is_compared_with_the_base_and_the_reference_and_p_is_corrected_over_all(tmp_path):
    draw = np.random.default_rng(1)
    results = [result("base", None, np.zeros(50))]
    results += [
        result(method, seed, draw.normal(mean, 1, 50))
        for method, mean in (("lora", 3), ("pissa", 0))
        for seed in (42, 1024)
    ]
    made = tables.differences(read(tmp_path), results)
    assert [(each.method, each.other) for each in made] == [("lora", "base"), ("pissa", "base"), ("lora", "pissa")]
    lowest = min(made, key=lambda each: each.p)
    assert lowest.corrected == pytest.approx(min(1, 3 * lowest.p))
    text = tables.tables(read(tmp_path), [each for each in results if each.seed != 42])["markdown"]
    assert "| crows_pairs | base | 1 |" in text and "| able | – | 3.200 | 90.0 |" in text
    assert "Do scores of bias change by tuning?" in text and "Significant after correction:" in text


def test_a_base_alone_has_scores_and_no_answers(tmp_path):
    text = tables.tables(read(tmp_path), [result("base", None, [0, 1, 1])])["markdown"]
    assert (
        "| crows_pairs | base | 1 |" in text and "## Differences" not in text and "Do scores of bias change" not in text
    )


def test_the_figures_of_a_base_alone_are_not_drawn_and_that_is_no_error(tmp_path, monkeypatch, capsys):
    read(tmp_path)  # writes the file
    monkeypatch.setattr(results_module, "read_results", lambda *_, **__: [result("base", None, [0, 1, 1])])
    command = [
        "experiments",
        "figure",
        str(tmp_path / "small.yaml"),
        "--runs",
        str(tmp_path),
        "--output_dir",
        str(tmp_path / "figures"),
    ]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0 and "no two results can be compared yet" in capsys.readouterr().out
    monkeypatch.setattr(results_module, "read_results", lambda *_, **__: [])
    with pytest.raises(UserError, match="has no result and names no published numbers"):
        main()


def test_what_is_significant_is_counted_apart_from_what_reaches_the_margin(tmp_path):
    sides = (("base", None, [0] * 960 + [1] * 40), ("lora", 42, [0] * 940 + [1] * 60))  # 2 points, margin 5
    text = tables.tables(read(tmp_path), [result(*side) for side in sides])["markdown"]
    assert "| equivalent |" in text and "None was shown to change." in text
    assert "Significant after correction: 1 of 1 differences, 1 of them below the margin." in text


def test_the_table_names_the_rate_that_each_method_was_given(tmp_path):
    tuning = "tuning: {seed: 7, data: held-out, max_steps: 2, learning_rates: {lora: [0.001, 0.002], pissa: [0.003]}}\n"
    tuned = replace(result("lora", 42, [0, 1, 1]), training={"tuned": True, "learning_rate": 0.002})
    text = tables.tables(read(tmp_path, FILE + tuning), [tuned])["markdown"]
    assert (
        "Learning rates: lora 0.002. They are the best of lora 0.001, 0.002; pissa 0.003, by the held-out loss" in text
    )


def test_a_score_of_a_model_without_ability_is_no_change_of_bias(tmp_path):
    sides = (("base", None, [0] * 90 + [1] * 10), ("lora", 42, [1] * 90 + [0] * 10))
    for verdict, answer in (("able", "Yes: crows_pairs of lora (more)."), ("no ability", "None was shown to change.")):
        results = [result(*side, ability=ABLE | {"verdict": verdict}) for side in sides]
        text = tables.tables(read(tmp_path), results)["markdown"]
        assert f"Do scores of bias change by tuning? {answer}" in text
        assert "Does a method differ from pissa? None was compared." in text
        assert ("No ability, so no score of bias: crows_pairs of base" in text) == (verdict == "no ability")


def moving(tmp_path, pro, anti, base=0.5):
    text = FILE.replace("lora: {method: lora}", "pro: {method: lora}").replace(
        "pissa: {method: pissa}", "anti: {method: pissa}"
    )
    experiment = read(tmp_path, text + "stereotypes: {pro: pro, anti: anti}\n")
    sides = (("base", None, base), ("pro", 42, pro), ("anti", 42, anti))
    results = [
        result(method, seed, [1] * round(200 * share) + [0] * round(200 * (1 - share))) for method, seed, share in sides
    ]
    return experiment, results


@pytest.mark.parametrize(
    ("pro", "anti", "verdict"),
    [
        (0.7, 0.4, tables.MOVED),
        (0.4, 0.7, tables.WRONG),
        (0.5, 0.5, tables.INSENSITIVE),
        (0.505, 0.5, tables.INSENSITIVE),
    ],
)
def test_a_benchmark_moves_only_if_pro_is_above_anti(tmp_path, pro, anti, verdict):
    experiment, results = moving(tmp_path, pro, anti)
    ((both, *_),) = tables.moves(experiment, results)
    assert both.difference == pytest.approx(pro - anti) and tables.verdict_of_move(both) == verdict
    made = tables.tables(experiment, results)
    (line,) = (line for line in made["markdown"].splitlines() if line.startswith("| crows_pairs | 200 |"))
    assert f"| 50.0 | {100 * pro:.1f} | {100 * anti:.1f} |" in line and line.endswith(f"| {verdict} |")
    rows = list(csv.DictReader(made["csv"].splitlines()))
    assert [row["method"] for row in rows] == ["pro", "pro", "anti"]
    assert {row["ability of other"] for row in rows} == {row["ability of method"] for row in rows} == {"able"}
    text = write_report([(experiment, results)], tmp_path / "report.html").read_text()
    assert f"<td>{verdict}</td>" in text and re.findall("<h3>(.*)</h3>", text) == ["Scores", "Does a score move?"]


def test_a_figure_has_the_differences_with_half_of_their_intervals_and_the_held_out_loss(tmp_path):
    draw = np.random.default_rng(2)
    lost = ABLE | {"held_out_loss": 3.5}
    results = [result("base", None, draw.integers(2, size=200))]
    results += [result("lora", seed, draw.integers(2, size=200), ability=lost) for seed in (42, 1024)]
    results += [result("pissa", 42, draw.integers(2, size=200), ability=ABLE | {"verdict": "no ability"})]
    figures = dict(compose(read(tmp_path), results))
    against_base, against_pissa = figures["differences"]
    scores, losses = (dict(panel.rows) for panel in against_base.panels)
    (made,) = (
        each for each in tables.differences(read(tmp_path), results) if (each.method, each.other) == ("lora", "base")
    )
    half = 50 * (made.interval[1] - made.interval[0])
    assert (scores["lora"].mean, scores["lora"].error) == pytest.approx((100 * made.difference, half))
    assert (scores["pissa"].text, scores["pissa"].error) == ("no ability", None)
    assert losses["lora"].mean == pytest.approx(0.3) and losses["pissa"].mean == 0
    assert list(dict(against_pissa.panels[0].rows)) == ["lora"]
    assert "bars" not in figures  # they would show a score of bias alone


def test_the_figure_of_a_check_of_sensitivity_has_the_three_differences(tmp_path):
    ((name, (section,)),) = compose(*moving(tmp_path, 0.7, 0.4))
    assert name == "differences"
    rows = dict(section.panels[0].rows)
    assert {name: round(estimate.mean) for name, estimate in rows.items()} == {
        "pro − anti": 30,
        "pro − base": 20,
        "anti − base": -10,
    }


def test_no_score_of_bias_is_called_best_and_of_losses_the_lowest_is(tmp_path):
    experiment = read(tmp_path)
    results = [result(method, 42, [share] * 4) for method, share in (("lora", 0.6), ("pissa", 0.4))]
    table = build(experiment, results)
    assert marks(table) == {} and table.columns[0].title == "crows_pairs, %"
    losses = [
        result(method, 42, [loss], "solution loss", "solutions", {}) for method, loss in (("lora", 2.0), ("pissa", 1.0))
    ]
    table = build(experiment, losses)
    names = {table.rows[row].variant.method: mark for (row, _), mark in marks(table).items()}
    assert names == {"pissa": "best", "lora": "second"}


# From end to end, with the embedded model

PROBLEMS = [
    {"question": f"Ann has {n} pens and buys {n + 1}.", "answer": f"She has {n + n + 1} pens.\n#### {n + n + 1}"}
    for n in range(12)
]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_trial_and_a_run_are_measured_and_collected(tmp_path):
    (tmp_path / "data").mkdir()
    train, _ = write(tmp_path / "data/train.jsonl", PROBLEMS), write(tmp_path / "data/test.jsonl", PROBLEMS[:4])
    text = FILE.replace('  crows_pairs: {data: "benchmark:crows_pairs:scored"}\n', "").replace(
        "margins: {crows_pairs: 5}\n", ""
    )
    text = text.replace("[42, 1024]", "[42]").replace("  pissa: {method: pissa}\n", "")
    changes = {
        "data": "openai/gsm8k:main",
        "data_path": train,
        "effective_batch_size": 4,
        "micro_batch_size": 2,
        "max_steps": 2,
        "validation_share": 0.25,
    }
    (tmp_path / "small.yaml").write_text(text + TUNING.replace(", 0.002]", "]").replace(", pissa: [0.003]", ""))
    trials = tuning_runs(tmp_path / "small.yaml", tmp_path / "runs", changes)
    (trial,) = trials.runs
    pool.do_run(trial, trials.evaluations, True)
    look = json.loads((trial.folder / "run.json").read_text())["validation"]["last"]
    assert json.loads((trial.folder / "measures.json").read_text())["scores"] == {"validation": look["task"]}

    experiment = read_experiment(tmp_path / "small.yaml", tmp_path / "runs", changes=changes, tuned=False)
    for run in experiment.runs:
        assert pool.do_run(run, experiment.evaluations, True).startswith("solutions ")
    collect(experiment, tmp_path / "results")
    found = {each.variant.method: each.scores["solutions"] for each in read_results(experiment, tmp_path / "results")}
    lora = next(run.folder for run in experiment.runs if run.method == "lora")
    lines = [json.loads(line) for line in (lora / "eval/solutions/losses.jsonl").read_text().splitlines()]
    expected = sum(line["nats"] for line in lines) / sum(line["tokens"] for line in lines)
    assert (
        len(lines) == 3
        and found["lora"].score == pytest.approx(expected)
        and found["base"].score != found["lora"].score
    )
    assert found["lora"].items.mean() == pytest.approx(expected, rel=1e-5)
    assert found["base"].data_hash == found["lora"].data_hash
    assert (
        "| solutions | lora − base | 1 | 3 |" in tables.tables(experiment, read_results(experiment, None))["markdown"]
    )


def test_items_are_numbers_and_gaps():
    found = items_of("1 0.5 - -1")
    assert np.isnan(found[2]) and found[[0, 1, 3]].tolist() == [1, 0.5, -1]
    with pytest.raises(UserError, match="'items' is '1 x', numbers are needed"):
        items_of("1 x")
