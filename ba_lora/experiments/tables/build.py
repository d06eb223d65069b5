"""The table of an experiment: our results beside the paper's numbers, and statistics of the differences.

The columns are scores in percent (MT-Bench 1 to 10), then other measurements, then costs of training. In a group of rows that
differ only in their method the best mean is bold and the second underlined, as printed, so equal means share a mark; the
unchanged base is not marked. Rendering is in formats.py.
"""

from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

import numpy as np

from eval.all import BENCHMARKS, MT_BENCH
from eval.harness.statistics import (
    NARROW,
    crossed_interval,
    holm,
    mean_sd,
    paired_intervals,
    paired_p,
    t_interval,
    verdict,
)

from ..matrix import Experiment, Variant
from ..paper.published import Printed, Published, read_paper
from ..results import Result
from .columns import COSTS, MEASURES, OF_GIVEN_TEXTS, Column

BASE = "base"
HERE, NOT_RUN = "here", "not run here"
LABELS = {
    **{name: row.title for name, row in BENCHMARKS.items()},
    **{"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI", "qnli": "QNLI"},
    "rte": "RTE",
}


class Cell(NamedTuple):
    """Mean over seeds and its standard deviation, as stored (before scaling)."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Row:
    """source: "here", "not run here", or the paper's version. printed: the paper's cells, as published."""

    source: str
    variant: Variant
    seeds: int = 0
    cells: dict[str, Cell] = field(default_factory=dict)
    printed: dict[str, Printed] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """`variant` minus `reference` in one column, a fraction. interval: 95%, over items and seeds; p: over seeds; corrected: by Holm;
    margin: the column's, a fraction, or None; narrow: the 90% interval that decides equivalence, only with a margin."""

    column: str
    variant: Variant
    reference: Variant
    seeds: int
    difference: float
    interval: tuple[float, float] | None
    p: float | None
    corrected: float | None = None
    margin: float | None = None
    narrow: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        if self.seeds == 1:
            return "one seed"
        return verdict(self.difference, self.interval, self.corrected, self.margin, self.narrow)


@dataclass(frozen=True)
class Table:
    """published: tables of the paper that do not fit between these rows; beside: those whose rows do."""

    experiment: Experiment
    columns: list[Column]
    rows: list[Row]
    comparisons: list[Comparison]
    beside: list[Published]
    published: list[Published]
    results: list[Result]
    with_mt_bench: bool = False  # True if the average includes MT-Bench


def build(experiment: Experiment, results: list[Result], average_with_mt_bench: bool = False) -> Table:
    """Return the table of `results`. average_with_mt_bench: average percentages with MT-Bench's 1 to 10, as the paper does."""
    names = list(experiment.columns)
    names += [name for result in results for name in result.scores if name not in names]
    names = list(dict.fromkeys(names))
    metrics = {name: score.metric for result in results for name, score in result.scores.items()}
    shown = [_score_column(name, metrics.get(name)) for name in names]
    averaged = [name for name in names if name != MT_BENCH or average_with_mt_bench]
    if not experiment.evaluations and len(averaged) > 1:
        shown.append(Column("average", "average" if MT_BENCH in averaged else "average %", 100, 2, "higher", "average"))
    shown += [column for column in MEASURES if any(_values([result], column) for result in results)]
    shown += [column for column in COSTS if any(column.key in result.training for result in results)]
    by_variant: dict[Variant, list[Result]] = {}
    for result in results:
        by_variant.setdefault(result.variant, []).append(result)
    variants = list(dict.fromkeys([*experiment.variants, *by_variant]))
    papers = [read_paper(name) for name in experiment.paper]
    beside = [paper for paper in papers if any(_paper_row(paper, variant, names, averaged) for variant in variants)]
    if any("parameters" in paper.columns for paper in beside):
        shown.insert(len(names), Column("parameters", "parameters, M", 1, 0, None, "printed"))
    rows = []
    for variant in variants:
        there = by_variant.get(variant, [])
        rows.append(_row(variant, there, shown, averaged) if there else Row(NOT_RUN, variant))
        rows += [row for paper in beside if (row := _paper_row(paper, variant, names, averaged))]
    margins = {
        column.key: experiment.margins[column.key] / column.scale
        for column in shown
        if column.key in experiment.margins
    }
    comparisons = _compare(experiment.reference, by_variant, names, margins)
    others = [paper for paper in papers if paper not in beside]
    return Table(experiment, shown, rows, comparisons, beside, others, results, average_with_mt_bench)


def _score_column(name: str, metric: str | None) -> Column:
    label = LABELS.get(name, name)
    if metric in OF_GIVEN_TEXTS:
        unit = OF_GIVEN_TEXTS[metric]
        return Column(name, f"{label}, {unit.name}", unit.scale, unit.digits, unit.better)
    if name == MT_BENCH:
        return Column(name, label, 1, 2, "higher")
    return Column(name, f"{label} %", 100, 2 if name in LABELS else 1, "higher")


def _row(variant: Variant, results: list[Result], shown: list[Column], averaged: list[str]) -> Row:
    """Return mean and deviation over seeds; the results of one seed on several data sets make one row."""
    seeds = {result.seed for result in results}
    cells = {}
    for column in shown:
        values = _averages(results, averaged) if column.kind == "average" else _values(results, column)
        if values:
            cells[column.key] = Cell(*mean_sd(values))
    return Row(HERE, variant, len(seeds), cells)


def _values(results: list[Result], column: Column) -> list[float]:
    values = []
    for result in results if column.kind != "printed" else ():
        if column.kind == "score":
            value = result.scores[column.key].score if column.key in result.scores else None
        else:
            value = (result.measures if column.kind == "measure" else result.training).get(column.key)
            if isinstance(value, dict):  # classifiers: one value per evaluation
                value = value.get(next(iter(result.scores)))
        values += [] if value is None else [value]
    return values


def _averages(results: list[Result], averaged: list[str]) -> list[float]:
    """Return the average of each seed that has all columns. MT-Bench's score counts as that many percent."""
    by_seed: dict = {}
    for result in results:
        by_seed.setdefault(result.seed, {}).update({name: score.score for name, score in result.scores.items()})
    whole = [scores for scores in by_seed.values() if all(scores.get(name) is not None for name in averaged)]
    return [float(np.mean([scores[name] / (100 if name == MT_BENCH else 1) for name in averaged])) for scores in whole]


def _rank(variant: Variant) -> int | None:
    option, value = variant.varied or (None, None)
    return int(value) if option == "rank" else None


def _paper_row(paper: Published, variant: Variant, names: list[str], averaged: list[str]) -> Row | None:
    """Return the paper's row of a variant; None without a number in our columns."""
    if variant.varied and variant.varied[0] != "rank":
        return None
    row = paper.row(variant.model, variant.method, _rank(variant))
    if row is None or not row.cells.keys() & set(names):
        return None
    printed = {name: cell for name, cell in row.cells.items() if name in (*names, "parameters", "average")}
    if set(averaged) != {name for name, column in paper.columns.items() if column.averaged}:
        printed.pop("average", None)  # it averages other columns than ours
        if all(name in printed for name in averaged):
            mean = sum(printed[name].mean for name in averaged) / len(averaged)
            printed["average"] = Printed(mean.quantize(Decimal("0.01"), ROUND_HALF_UP))
    return Row(paper.version, variant, printed=printed)


def _compare(reference: str | None, by_variant: dict, names: list[str], margins: dict[str, float]) -> list[Comparison]:
    """Compare every other method with the reference, at the same model and value; if all rows are of the reference, compare each
    value with the unvaried row. Holm's correction covers the rows of one column. margins: column → a fraction."""
    others = {variant.method for variant in by_variant} - {reference, BASE}
    made = []
    for name in names:
        family = []
        for variant, results in by_variant.items():
            if variant.method == BASE or (variant.method == reference and (others or not variant.varied)):
                continue
            opposite = variant._replace(method=reference) if others else variant._replace(varied=None)
            if opposite in by_variant:
                family.append(_comparison(name, variant, opposite, results, by_variant[opposite], margins.get(name)))
        family = [each for each in family if each]
        corrected = holm([comparison.p for comparison, _ in family])
        intervals = iter(paired_intervals([answers for _, answers in family if answers]))
        for (comparison, answers), value in zip(family, corrected, strict=True):
            interval = next(intervals)[1:] if answers else None
            made.append(replace(comparison, interval=interval, corrected=value))
    return made


def _comparison(name, variant, opposite, results: list[Result], against: list[Result], margin) -> tuple | None:
    """Return (the comparison without its 95% interval, both sides' answers as (seeds, items) or None if they were not kept).

    Return None if no seed has both.
    """
    sides = [{r.seed: r.scores[name] for r in side if name in r.scores} for side in (results, against)]
    shared = sorted(
        seed for seed in set(sides[0]) & set(sides[1]) if None not in (sides[0][seed].score, sides[1][seed].score)
    )
    if not shared:
        return None
    scores = [[side[seed].score for seed in shared] for side in sides]
    answers = None
    if all(side[seed].correct is not None for side in sides for seed in shared):
        answers = tuple(np.stack([side[seed].correct for seed in shared]) for side in sides)
    made = Comparison(
        name,
        variant,
        opposite,
        len(shared),
        float(np.mean(scores[0]) - np.mean(scores[1])),
        None,
        paired_p(*scores),
        margin=margin,
        narrow=None if margin is None else _narrow(scores, answers),
    )
    return made, answers


def _narrow(scores: list[list[float]], answers: tuple | None) -> tuple[float, float] | None:
    """Return the 90% interval of the difference over seeds and items; over seeds alone if the answers were not kept, None if then
    all differences are equal, and for one seed."""
    if answers and min(answers[0].shape) > 1:
        return crossed_interval(np.subtract(*answers, dtype=np.float64), NARROW).ends
    return None if paired_p(*scores) is None else t_interval(np.subtract(*scores), NARROW).ends


def marks(table: Table) -> dict[tuple[int, str], str]:
    """Return {(row, column): "best" or "second"} by the rule in the module docstring, separately for our rows and the paper's."""
    groups: dict = {}
    for number, row in enumerate(table.rows):
        if row.source != NOT_RUN and row.variant.method != BASE:
            groups.setdefault((row.source, row.variant.model, row.variant.varied), []).append(number)
    found = {}
    for numbers in groups.values():
        for column in table.columns:
            if column.kind in ("score", "average") and column.better:
                found |= _marks_of(table, numbers, column)
    return found


def _marks_of(table: Table, numbers: list[int], column: Column) -> dict:
    values = {}
    for number in numbers:
        row = table.rows[number]
        if column.key in row.cells:
            values[number] = round(row.cells[column.key].mean * column.scale, column.digits)
        elif column.key in row.printed:
            values[number] = float(row.printed[column.key].mean)
    if len(values) < 2:
        return {}
    ranked = sorted(set(values.values()), reverse=column.better == "higher")
    names = dict(zip(ranked, ("best", "second"), strict=False))
    return {(number, column.key): names[value] for number, value in values.items() if value in names}
