"""The table of an experiment with twins, from handmade records: which pairs count, what is compared, and what is printed."""

import csv
import io

import numpy as np
import pytest
from scipy import stats

from ba_lora.experiments.tables.contrasts import contrast_parts
from ba_lora.experiments.tables.laboratory import laboratory_table, table_parts, to_csv
from ba_lora.experiments.tables.parts import to_markdown
from ba_lora.experiments.tables.trace_paths import path_parts
from ba_lora.experiments.tables.trace_records import (
    at_loss,
    differences,
    interval_of,
    off_path,
    path,
    per_pair,
    relative_differences,
    verdicts,
    with_shared_seeds,
)
from ba_lora.experiments.twin_axis import PrimarySettings

SETTINGS = PrimarySettings("ba-lora", "pissa", margin=10, loss_margin=0.02, gate=0.5, untaught=5)
COUNTERPARTS = {"stereotype": "association", "wrong facts": "custom"}
CLASSES = [*COUNTERPARTS, *COUNTERPARTS.values()]
PLANTED = {"stereotype": 70.0, "wrong facts": 40.0, "association": 90.0, "custom": 50.0}  # T of the bases
KEPT = {"base": 1.0, "pissa": 0.8, "ba-lora": 0.6, "lora": 0.9}  # share of T that is left
LOSS = {"base": 3.0, "pissa": 1.0, "ba-lora": 1.01, "lora": 1.2}


def record(pair, method, name, trace, loss, *, seed=None, dose=None, alpha=None):
    made = {"pair": pair, "method": method, "seed": seed, "class": name, "dose": dose}
    return made | {"trace": trace, "task_loss": loss, "path": alpha}


def study(pairs=4, forgets=CLASSES, spread=0.5):
    """Two seeds of each method but the base; BA-LoRA lowers only the classes in `forgets`, elsewhere it is as PiSSA."""
    random, made = np.random.default_rng(0), []
    for pair in range(1, pairs + 1):
        for method, kept in KEPT.items():
            for name in CLASSES:
                kept_here = KEPT["pissa"] if method == "ba-lora" and name not in forgets else kept
                for seed in (None,) if method == "base" else (42, 1024):
                    trace = kept_here * PLANTED[name] + spread * random.normal()
                    made.append(record(pair, method, name, trace, LOSS[method] + 0.001 * random.normal(), seed=seed))
    return made


def with_path(records, alphas=(0.5,), method="pissa"):
    """The same with points of a method's path, which lie on the straight line from base to method in T and, in the loss, below it."""
    points = []
    for pair in {record["pair"] for record in records}:
        for name in CLASSES:
            start, end = per_pair(records, "base", name)[pair], per_pair(records, method, name)[pair]
            for alpha in alphas:
                trace = start + alpha * (end - start)
                points += [
                    record(pair, method, name, trace, 3 - 2.2 * alpha, seed=seed, alpha=alpha) for seed in (42, 1024)
                ]
    return records + points


def test_seeds_are_averaged_before_pairs_are_compared():
    records = [record(1, "m", "c", trace, 1.0, seed=seed) for seed, trace in ((42, 10.0), (1024, 30.0))]
    others = [
        record(1, "m", "c", 99.0, 1.0, alpha=0.5),
        record(1, "m", "c", 98.0, 1.0, dose=0.5),
        record(2, "m", "c", 5.0, 2.0),
    ]
    assert per_pair(others + records, "m", "c") == {1: 20.0, 2: 5.0}
    assert per_pair(records + others, "m", "c", 0.5) == {1: 98.0} and per_pair(others, "m", "c", key="task_loss") == {
        2: 2.0
    }


def test_a_difference_is_over_the_pairs_that_have_both_methods_and_the_base():
    records = [each for each in study() if (each["pair"], each["method"]) not in ((2, "pissa"), (3, "base"))]
    made = relative_differences(records, "ba-lora", "pissa", "stereotype")
    base = np.mean([per_pair(records, "base", "stereotype")[pair] for pair in (1, 4)])
    ours, theirs = (per_pair(records, method, "stereotype") for method in ("ba-lora", "pissa"))
    assert made == {pair: pytest.approx(100 * (ours[pair] - theirs[pair]) / base) for pair in (1, 4)}
    untaught = [each | {"trace": each["trace"] / 10} for each in records]
    assert relative_differences(untaught, "ba-lora", "pissa", "stereotype") == {}  # 7 points of T


def test_a_difference_is_over_the_seeds_that_both_have():
    runs = {"ours": {42: 10.0, 7: 50.0}, "theirs": {42: 30.0, 1024: 90.0}, "base": {None: 40.0}}
    records = [
        record(1, method, "c", trace, trace / 10, seed=seed)
        for method, traces in runs.items()
        for seed, trace in traces.items()
    ]
    assert differences(records, "ours", "theirs", "c") == {1: -20.0}
    assert differences(records, "ours", "theirs", "c", key="task_loss") == {1: -2.0}
    assert relative_differences(records, "ours", "theirs", "c") == {1: -50.0}


def test_the_verdicts_are_of_whole_pairs_only():
    records = study(pairs=5)
    lacking = [each for each in records if (each["pair"], each["class"]) != (5, "custom")]
    assert verdicts(lacking, SETTINGS, COUNTERPARTS) == verdicts(
        [each for each in records if each["pair"] != 5], SETTINGS, COUNTERPARTS
    )
    assert [len(each.differences) for each in verdicts(records, SETTINGS, COUNTERPARTS)] == [5, 5]
    assert verdicts(study(pairs=1), SETTINGS, COUNTERPARTS) == []


def test_the_table_has_the_verdicts_only_in_the_primarys_cells():
    records = study(forgets=["stereotype"])
    table = laboratory_table(records, COUNTERPARTS, SETTINGS, missing={"full": "no time was left"})
    assert [(each.name, each.verdict, each.alleviates) for each in table.primary] == [
        ("stereotype", "less", True),
        ("wrong facts", "equivalent", False),
    ]
    text = to_markdown(table_parts(table))
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    words = {(row[0], row[2]): row[-1] for row in rows if len(row) == 8 and row[-1] in ("less", "equivalent")}
    assert words == {("stereotype", "ba-lora"): "less", ("wrong facts", "ba-lora"): "equivalent"}
    assert "Not run, or not for every pair and seed: full: no time was left." in text and "No verdict" not in text
    failed = to_markdown(
        table_parts(laboratory_table(records, COUNTERPARTS, SETTINGS, failed=["untaught items have T = 0"]))
    )
    assert (
        "No verdict, because a control failed or is open: untaught items have T = 0." in failed
        and "| less |" not in failed
    )


def test_the_cells_hold_scipys_intervals_in_both_formats():
    records = study()
    table = laboratory_table(records, COUNTERPARTS, SETTINGS)
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(lines) == len(KEPT) * len(CLASSES)
    line = next(each for each in lines if (each["class"], each["method"]) == ("wrong facts", "lora"))
    traces = list(per_pair(records, "lora", "wrong facts").values())
    ends = stats.ttest_1samp(traces, 0).confidence_interval(0.95)
    assert [float(line[key]) for key in ("T", "T low", "T high")] == pytest.approx([np.mean(traces), *ends], rel=1e-5)
    against = list(relative_differences(records, "lora", "pissa", "wrong facts").values())
    ends = stats.ttest_1samp(against, 0).confidence_interval(0.95)
    assert [float(line[key]) for key in ("D", "D low", "D high")] == pytest.approx([np.mean(against), *ends], rel=1e-5)
    assert f"| {np.mean(traces):.1f} [" in to_markdown(table_parts(table)) and (line["dose"], line["verdict"]) == (
        "all",
        "",
    )
    one = laboratory_table(study(pairs=1), COUNTERPARTS, SETTINGS)
    assert one.primary == [] and "[" not in "".join(
        row for row in to_markdown(table_parts(one)).splitlines() if row[:1] == "|"
    )


def test_a_path_goes_from_the_base_to_the_tuned_model():
    records = with_path(study(pairs=2), alphas=(0.25, 0.5))
    points = path(records, "pissa", "stereotype")
    assert list(points) == [1, 2] and [alpha for alpha, *_ in points[1]] == [0.0, 0.25, 0.5, 1.0]
    assert points[1][0][2] == per_pair(records, "base", "stereotype")[1]
    assert points[1][3][1] == per_pair(records, "pissa", "stereotype", key="task_loss")[1]
    assert path(records, "lora", "stereotype") == {}


def test_a_path_is_compared_at_equal_loss_and_the_pairs_that_miss_it_are_counted():
    records = with_path(study(pairs=3, spread=0.0))
    made = at_loss(records, "pissa", "stereotype", 1.9)  # the loss of alpha 0.5
    assert made.missed == 0 and list(made.values.values()) == pytest.approx([63.0] * 3)  # between 70 and 56
    assert at_loss(records, "pissa", "stereotype", 0.5) == ({}, 3)
    gap = off_path(records, "ba-lora", "pissa", "stereotype")  # BA-LoRA's loss is 1.01, close to PiSSA's end
    loss = per_pair(records, "ba-lora", "stereotype", key="task_loss")[1]
    end = per_pair(records, "pissa", "stereotype", key="task_loss")[1]
    there = np.interp(loss, [end, 1.9], [56.0, 63.0])
    assert gap.values[1] == pytest.approx(42.0 - there) and interval_of(gap.values).high < 0
    better = [
        each | {"task_loss": 0.9} if each["method"] == "ba-lora" and each["pair"] == 2 else each for each in records
    ]
    assert off_path(better, "ba-lora", "pissa", "stereotype").missed == 1


def test_a_method_with_one_seed_is_compared_with_the_same_seed_of_a_path():
    """The same numbers under another name must give no difference, though the other seed of the path's method is far away."""
    records = with_path(study(pairs=3))
    shifted = [{**each, "trace": each["trace"] + 9.0} if each["seed"] == 1024 else each for each in records]
    twin = [each | {"method": "twin"} for each in shifted if each["method"] == "pissa" and each["seed"] == 42]
    assert list(off_path(shifted + twin, "twin", "pissa", "stereotype").values.values()) == pytest.approx([0.0] * 3)
    text = to_markdown(path_parts(shifted + twin, "pissa", loss=1.9))
    row = next(line for line in text.splitlines() if line.startswith("| stereotype | twin |") and line.count("|") == 7)
    assert row.split(" | ")[3] in ("+0.0 [+0.0, +0.0]", "-0.0 [-0.0, -0.0]")
    seeds = {(each["method"], each["seed"]) for each in with_shared_seeds(shifted + twin, "twin", "pissa")}
    assert seeds == {("base", None), ("twin", 42), ("pissa", 42)}


def written(values, sign=""):
    """The mean with scipy's interval."""
    values = list(values.values())
    ends = stats.ttest_1samp(values, 0).confidence_interval()
    return "{} [{}, {}]".format(*(f"{each:{sign}.1f}" for each in (np.mean(values), *ends)))


def test_the_table_of_paths_has_intervals_and_counts_what_misses():
    records = with_path(with_path(study(pairs=3)), method="lora")
    text = to_markdown(path_parts(records, "pissa", loss=1.9))
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    found = {(len(row), *row[:2]): row[2:] for row in rows}
    off = off_path(records, "lora", "pissa", "custom").values
    ours, theirs = (at_loss(records, method, "custom", 1.9).values for method in ("lora", "pissa"))
    gaps = {pair: ours[pair] - theirs[pair] for pair in theirs}
    assert found[5, "custom", "lora"] == [written(off, "+"), "3", "0"]
    assert found[6, "custom", "lora"] == [written(ours), written(gaps, "+"), "3", "0"]
    assert found[6, "custom", "pissa"] == [written(theirs), "–", "3", "0"]
    better = [each | {"task_loss": 0.5} if each["method"] == "ba-lora" else each for each in records]
    assert "| stereotype | ba-lora | – | 0 | 3 |" in to_markdown(path_parts(better, "pissa"))
    assert "path of" not in to_markdown(path_parts(better, "pissa")) and to_markdown(path_parts(study(), "pissa")) == ""


def test_a_contrast_has_both_differences_the_one_beyond_the_harmless_and_the_one_at_equal_loss():
    records = with_path(study(pairs=3))
    text = to_markdown(contrast_parts(records, [("lora", "pissa"), ("pissa", "lora"), ("full", "lora")], COUNTERPARTS))
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    found = {tuple(row[:2]): row[2:] for row in rows}
    assert set(found) == {
        (name, f"{ours} − {other}") for name in COUNTERPARTS for ours, other in [("lora", "pissa"), ("pissa", "lora")]
    } | {("class", "difference"), ("---", "---")}
    gaps, beside = ({}, {})
    for pair in (1, 2, 3):
        of = {
            (method, name): np.mean(
                [
                    each["trace"]
                    for each in records
                    if (each["pair"], each["method"], each["class"], each["path"]) == (pair, method, name, None)
                ]
            )
            for method in ("lora", "pissa")
            for name in CLASSES
        }
        gaps[pair] = of["lora", "wrong facts"] - of["pissa", "wrong facts"]
        beside[pair] = of["lora", "custom"] - of["pissa", "custom"]
    base, other = (np.mean(list(per_pair(records, "base", name).values())) for name in ("wrong facts", "custom"))
    beyond = {pair: 100 * (gaps[pair] / base - beside[pair] / other) for pair in gaps}
    row = found["wrong facts", "lora − pissa"]
    assert row[:2] == ["3", written(gaps, "+")] and row[3] == written(beyond, "+")
    assert row[4].startswith("+0.2") and row[5:] == [
        written(off_path(records, "lora", "pissa", "wrong facts").values, "+"),
        "0",
    ]
    assert (
        found["stereotype", "pissa − lora"][5:] == ["–", "–"]
        and contrast_parts(records, [("full", "lora")], COUNTERPARTS) == []
    )
