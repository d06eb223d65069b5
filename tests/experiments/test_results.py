"""From run folders and handmade files to tables: what is read, refused and printed."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from ba_lora.errors import UserError
from ba_lora.experiments.__main__ import main
from ba_lora.experiments.matrix import read_experiment
from ba_lora.experiments.results import _benchmarks, read_results
from ba_lora.experiments.tables.build import build, marks
from ba_lora.experiments.tables.formats import name_of, render, write_tables
from ba_lora.files import write_json

ROOT = Path(__file__).parents[2]
LARGE = """
name: large
title: A large model
paper: [nlg-v5, ranks]
config: CONFIGS/{model}-{data}-v5.yaml
models: [llama-2-7b]
data: [metamath, code, conversation]
methods:
  full: {method: full, init: null}
  lora: {method: lora, init: null}
  pissa: {method: pissa}
  ba-lora: {method: ba-lora}
seeds: [42, 1024, 2024]
"""


@pytest.fixture
def large(tmp_path):
    file = tmp_path / "large.yaml"
    file.write_text(LARGE.replace("CONFIGS", str(ROOT / "configs/nlg")))
    return read_experiment(file, tmp_path / "runs", results=tmp_path / "results")


def score(value, correct=None, **more):
    made = {"score": value, "n": 4, "metric": "accuracy", "protocol": "ba-lora 2", "data_hash": "abc"} | more
    return made | ({"correct": correct} if correct else {})


def put(folder, method, seed, scores, **more):
    """A handmade result file."""
    content = {"model": "llama-2-7b", "method": method, "seed": seed, "scores": scores} | more
    path = folder / f"{method}-{seed}-{'-'.join(scores)}.json"
    write_json(path, content)
    assert json.loads(path.read_text()) == content
    return path


def two_methods(folder):
    """PiSSA gets 2, 2, 1 of 4 right and BA-LoRA 3, 2, 3 of 4, over three seeds."""
    for seed, theirs, ours in ((42, "1100", "1110"), (1024, "1100", "0110"), (2024, "1000", "1110")):
        put(folder, "pissa", seed, {"gsm8k": score(theirs.count("1") / 4, theirs)})
        put(folder, "ba-lora", seed, {"gsm8k": score(ours.count("1") / 4, ours)})


def row_of(text, method, where="here"):
    """Cells of a Markdown row, by column."""
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "|" in line]
    for line in lines:
        cells = dict(zip(lines[0], line, strict=False))
        if cells.get("method") == method and where in cells.get("where", "here"):
            return cells
    raise AssertionError(f"no row of {method}, {where}")


def test_a_line_of_results_counts_like_a_file_and_is_named_when_it_is_wrong(large, tmp_path):
    folder = tmp_path / "results/large"
    two_methods(folder)
    in_files = render(build(large, read_results(large, tmp_path / "results")), "markdown")
    lines = [json.dumps(json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))]
    for file in folder.glob("*.json"):
        file.unlink()
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    assert render(build(large, read_results(large, tmp_path / "results")), "markdown") == in_files
    (folder / "results.jsonl").write_text("\n".join([lines[0], lines[1].replace('"seed"', '"sed"'), *lines[2:]]))
    with pytest.raises(UserError, match="results.jsonl, line 2 has no 'seed'"):
        read_results(large, tmp_path / "results")
    (folder / "results.jsonl").write_text("")
    with pytest.raises(UserError, match="results.jsonl is empty"):
        read_results(large, tmp_path / "results")


def test_without_runs_the_table_is_the_papers_and_says_so(large, tmp_path):
    text = render(build(large, read_results(large, tmp_path / "none")), "markdown")
    assert "None of this was run here: the numbers are the paper's." in text
    assert large.columns == ["gsm8k", "math", "humaneval", "mbpp", "mt_bench"]
    ours, theirs = (row_of(text, "ba-lora", where) for where in ("not run here", "paper: BA-LoRA, arXiv v3 to v5"))
    assert set(ours.values()) == {"ba-lora", "not run here", "–"}
    assert theirs["GSM8K %"] == "**54.53 ± 0.41**" and theirs["MT-Bench"] == "**5.11 ± 0.05**"
    assert row_of(text, "pissa", "paper")["GSM8K %"] == "<u>52.37 ± 0.52</u>"
    assert "gemma-7b full mbpp: PiSSA's table has a deviation of 0.50" in text  # a correction
    assert "digitised" in text and "p after Holm" not in text


def test_a_column_of_generated_problems_is_not_headed_gsm8k(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(
        f"name: small\nconfig: {ROOT}/configs/nlg/tiny.yaml\nmethods: {{lora: {{method: lora}}}}\nseeds: [1]\n"
    )
    small = read_experiment(file, tmp_path / "runs", results=tmp_path / "results")
    evaluation = small.runs[0].folder / "eval"
    of_gsm8k = {"metric": "accuracy", "n": 4, "score": 0.5, "protocol": "ba-lora", "protocol_version": "2"}
    write_json(evaluation / "gsm8k" / "score.json", {"benchmark": "tinymath", **of_gsm8k})
    scores = _benchmarks(evaluation)
    assert small.columns == [*scores] == ["tinymath"]
    put(tmp_path / "results/small", "lora", 1, scores, model="tiny")
    table = build(small, read_results(small, tmp_path / "results"))
    for kind in ("markdown", "csv", "latex"):
        assert "tinymath" in (text := render(table, kind)) and "GSM8K" not in text
    write_json(evaluation / "gsm8k" / "score.json", {"benchmark": "gsm8k", **of_gsm8k})
    assert [*_benchmarks(evaluation)] == ["gsm8k"]


def test_the_average_leaves_mt_bench_out_unless_asked_for(large, tmp_path):
    plain, mixed = (row_of(render(build(large, [], asked), "markdown"), "pissa", "paper") for asked in (False, True))
    assert plain["average %"].strip("<u>/") == "28.69"  # (52.37 + 7.76 + 21.55 + 33.09) / 4
    assert mixed["average"].strip("<u>/") == "23.93"


def test_a_result_made_by_hand_stands_beside_the_papers(large, tmp_path):
    put(tmp_path / "results/large", "ba-lora", 42, {"gsm8k": score(0.5), "math": score(0.1)}, data="metamath")
    put(tmp_path / "results/large", "ba-lora", 42, {"humaneval": score(0.2), "mbpp": score(0.4)}, data="code")
    put(tmp_path / "results/large", "ba-lora", 42, {"mt_bench": score(5.0)}, data="conversation")
    assert read_results(large, None) == []  # only the runs of this machine
    table = build(large, read_results(large, tmp_path / "results"))
    cells = row_of(render(table, "markdown"), "ba-lora")
    assert [cells[key] for key in ("GSM8K %", "MATH %", "HumanEval %", "MBPP %", "MT-Bench")] == [
        *("50.00", "10.00", "20.00", "40.00", "5.00")
    ]
    assert cells["seeds"] == "1" and cells["average %"] == "30.00"  # from one row: no mark
    mixed = build(large, read_results(large, tmp_path / "results"), average_with_mt_bench=True)
    assert row_of(render(mixed, "markdown"), "ba-lora")["average"] == "25.00"
    assert "not run here" in render(table, "markdown") and "paper: BA-LoRA" in render(table, "markdown")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"protocol": "upstream 1"}, "gsm8k has protocol 'upstream 1', the other results 'ba-lora 2'"),
        ({"data_hash": "xyz"}, "gsm8k has data hash 'xyz', the other results 'abc'"),
        ({"metric": "pass@1"}, "gsm8k has metric 'pass@1'"),
    ],
)
def test_a_result_of_another_protocol_or_of_other_data_is_refused_by_name(large, tmp_path, other, message):
    two_methods(tmp_path / "results/large")
    file = put(tmp_path / "results/large", "lora", 42, {"gsm8k": score(0.5, **other)})
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        read_results(large, tmp_path / "results")
    assert str(file) in str(refusal.value) and "lora, seed 42" in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "holds no object"),
        ('{"model": "x"}', "has no 'method'; a result needs model, method, seed and scores"),
        ('{"model": "x", "method": "y", "seed": 1, "scores": {"gsm8k": {"score": 1}}}', "score of gsm8k has no 'n'"),
    ],
)
def test_a_file_that_is_no_result_is_refused_by_name(large, tmp_path, text, message):
    (tmp_path / "results/large").mkdir(parents=True)
    (tmp_path / "results/large/bad.json").write_text(text)
    with pytest.raises(UserError, match=message) as refusal:
        read_results(large, tmp_path / "results")
    assert "bad.json" in str(refusal.value)


def test_differences_are_paired_by_seed_and_item(large, tmp_path):
    two_methods(tmp_path / "results/large")
    put(tmp_path / "results/large", "lora", 42, {"gsm8k": score(0.25, "0001")})
    table = build(large, read_results(large, tmp_path / "results"))
    made = {each.variant.method: each for each in table.comparisons}
    assert set(made) == {"ba-lora", "lora"}
    ours = made["ba-lora"]
    assert ours.seeds == 3 and ours.difference == pytest.approx(np.mean([1, 0, 2]) / 4)
    assert ours.interval[0] <= ours.difference <= ours.interval[1]
    assert ours.p == pytest.approx(0.2254, abs=1e-4)  # t = 1.732, df 2
    assert (
        ours.corrected == ours.p and made["lora"].p is None
    )  # one seed has no p, and is not counted in the correction
    assert ours.verdict == "undecided" and made["lora"].verdict == "one seed"
    text = render(table, "markdown")
    assert "| GSM8K | ba-lora − pissa | +25.0 |" in text
    assert name_of(ours.variant._replace(varied=("rank", "4"))) == "ba-lora rank = 4"


@pytest.mark.parametrize(("margin", "word"), [(113, "equivalent"), (112, "undecided"), (30, "undecided")])
def test_a_column_with_a_margin_can_show_equivalence(large, tmp_path, margin, word):
    """The differences of the seeds are 1/4, 0 and 2/4: mean 0.25, t-interval at 90% ±0.42, widened by the four items."""
    two_methods(tmp_path / "results/large")
    large.file.write_text(large.file.read_text() + f"margins: {{gsm8k: {margin}}}\n")
    experiment = read_experiment(large.file, tmp_path / "runs", results=tmp_path / "results")
    table = build(experiment, read_results(experiment, tmp_path / "results"))
    (ours,) = table.comparisons
    assert (ours.margin, ours.verdict) == (margin / 100, word)
    differences = np.array([[0, 0, 1, 0], [-1, 0, 1, 0], [0, 1, 1, 0]])
    assert differences.mean(1).tolist() == [0.25, 0.0, 0.5]
    of_problems, residual = 35 / 36, 5 / 36  # sums of squares 0.5 of the seeds, 35/12 of the items, of 4.25
    half = 2.919986 * np.sqrt((0.25 + of_problems - residual) / 12)
    assert ours.narrow == pytest.approx((0.25 - half, 0.25 + half), abs=1e-5)
    text = render(table, "markdown")
    assert "| seeds | 90 % interval | margin | verdict |" in text and f"| ±{margin} | {word} |" in text
    assert "Margin: the smallest difference of interest" in text
    for file in (tmp_path / "results/large").glob("*.json"):  # scores without answers: over the seeds alone
        content = json.loads(file.read_text())
        del content["scores"]["gsm8k"]["correct"]
        file.write_text(json.dumps(content))
    (ours,) = build(experiment, read_results(experiment, tmp_path / "results")).comparisons
    assert ours.narrow == pytest.approx((0.25 - 0.42146, 0.25 + 0.42146), abs=1e-4) and ours.interval is None


def test_a_table_without_a_margin_shows_none(large, tmp_path):
    two_methods(tmp_path / "results/large")
    text = render(build(large, read_results(large, tmp_path / "results")), "markdown")
    assert "| seeds | verdict |" in text and "90 %" not in text and "equivalent" not in text


def test_the_best_and_the_second_are_marked_as_printed(large, tmp_path):
    for method, value in (("lora", 0.50001), ("pissa", 0.5), ("ba-lora", 0.4), ("full", 0.3)):
        put(tmp_path / "results/large", method, 42, {"gsm8k": score(value), "math": score(None)})
    table = build(large, read_results(large, tmp_path / "results"))
    found = {
        table.rows[number].variant.method: mark
        for (number, key), mark in marks(table).items()
        if key == "gsm8k" and table.rows[number].source == "here"
    }
    assert found == {"lora": "best", "pissa": "best", "ba-lora": "second"}
    assert row_of(render(table, "markdown"), "lora")["MATH %"] == "–"  # an undefined score


def test_methods_and_seeds_choose_among_the_files_too(large, tmp_path, capsys, monkeypatch):
    two_methods(tmp_path / "results/large")
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    words = ["experiments", "table", str(large.file), *places, "--methods", "pissa", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0
    text = capsys.readouterr().out
    assert row_of(text, "pissa")["GSM8K %"] == "50.00 ± 0.00"  # 42 and 1024; 2024 has 25
    with pytest.raises(AssertionError):
        row_of(text, "ba-lora")


def test_missing_leaves_out_the_runs_whose_results_are_there(large, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "results/large"
    rates = {run.method: run.arguments.learning_rate for run in large.runs}
    for data, method, seed, rate in (
        ("code", "pissa", 42, rates["pissa"]),
        ("code", "lora", 42, 2 * rates["lora"]),  # another run than the file's
    ):
        training = {"learning_rate": rate}
        put(folder, method, seed, {"humaneval": score(0.5)}, data=data, training=training)
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr("sys.argv", ["experiments", "run", str(large.file), *places, "--missing", "--list"])
    assert main() == 0
    said, *lines = capsys.readouterr().out.splitlines()
    assert said == f"1 of 36 runs are in {tmp_path / 'results'}/large and are not repeated"
    listed = {line.split()[1].rstrip(":") for line in lines[:-1]}
    assert listed == {run.name for run in large.runs} - {"llama-2-7b-code-pissa-s42"} and "35 runs" in lines[-1]


def test_all_formats_are_written_and_say_the_same(large, tmp_path):
    two_methods(tmp_path / "results/large")
    files = write_tables(build(large, read_results(large, tmp_path / "results")), tmp_path / "out")
    assert [file.name for file in files] == ["table.md", "table.csv", "table.tex"]
    with open(files[1], encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["where"] == "here"]
    assert [(row["method"], row["GSM8K %"], row["GSM8K % sd"]) for row in rows] == [
        *(("pissa", "41.6667", "14.4338"), ("ba-lora", "66.6667", "14.4338"))
    ]
    latex = files[2].read_text()
    assert r"\toprule" in latex and r"\textbf{66.67 $\pm$ 14.43}" in latex and r"GSM8K \%" in latex
    assert "**66.67 ± 14.43**" in files[0].read_text()
