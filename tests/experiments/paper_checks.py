"""Disagreements in the published numbers: with their own average, with another table, with the model's shape.

Every disagreement found here is listed among the file's `errors`, in our words, and every error with a `check` is found here;
test_paper.py checks both. Digitised figures may be off by their reading error.
"""

from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

from ba_lora.experiments.paper.counts import BASELINES, described, implied_rank, trained_parameters
from ba_lora.experiments.paper.published import Published, Row, read_paper

OURS = ("cr", "dr", "svdr", "ba-lora", "ba-lora-entropy")
NO_RESULT = ("parameters", "average")
Found = Iterator[tuple[str, str]]  # (where, what)


class Disagreement(NamedTuple):
    """check: the one of CHECKS that found it. where: the name of a row, a column or a cell."""

    check: str
    where: str
    what: str


def disagreements(published: Published) -> list[Disagreement]:
    """Yield everything found in one table or figure."""
    return [Disagreement(name, *found) for name, find in CHECKS.items() for found in find(published)]


def rounded(value: Decimal, printed: Decimal) -> Decimal:
    """Round `value` to as many digits as `printed` has, halves up."""
    return value.quantize(printed, ROUND_HALF_UP)


def recomputed_average(published: Published, row: Row) -> Decimal | None:
    """Return the mean of the averaged columns, or None if one was not recovered."""
    cells = [row.cells.get(key) for key, column in published.columns.items() if column.averaged]
    return sum(cell.mean for cell in cells) / len(cells) if cells and all(cells) else None


def _averages(published: Published) -> Found:
    for row in published.rows:
        printed, mean = row.cells.get("average"), recomputed_average(published, row)
        if printed and mean is not None and rounded(mean, printed.mean) != printed.mean:
            yield f"{row.name} average", f"printed {printed}, recomputed {rounded(mean, printed.mean)}"


def _units(published: Published) -> Found:
    units = {column.unit for column in published.columns.values() if column.averaged}
    if "average" in published.columns and len(units) > 1:
        yield "average", f"a mean of numbers in {' and '.join(sorted(units))}"


def _parameters(published: Published) -> Found:
    for row in published.rows:
        printed = row.cells.get("parameters")
        count = printed and trained_parameters(row.model, row.method, published.rank)
        if count and rounded(count / Decimal(10**6), printed.mean) != printed.mean:
            yield f"{row.name} parameters", f"printed {printed}M, counted {count:,}"


def _equal_results(published: Published) -> Iterator[tuple[str, Row, Row, list[str], bool]]:
    """Yield (file, row, the row there, columns with the same mean, whether these are all the common columns) if two or more are
    the same; a single match may be chance."""
    for name in published.apart_from:
        for row in published.rows:
            theirs = read_paper(name).row(row.model, row.method)
            both = [key for key in row.cells if theirs and key in theirs.cells and key not in NO_RESULT]
            equal = [key for key in both if row.cells[key].mean == theirs.cells[key].mean]
            if len(equal) > 1:
                yield name, row, theirs, equal, equal == both


def _copied(published: Published) -> Found:
    for name, row, _, equal, whole in _equal_results(published):
        for where in [row.name] if whole else [f"{row.name} {key}" for key in equal]:
            yield where, f"the same in {name}"


def _deviations(published: Published) -> Found:
    for name, row, theirs, equal, _ in _equal_results(published):
        for key in equal:
            printed, other = row.cells[key], theirs.cells[key]
            if None not in (printed.sd, other.sd) and printed.sd != other.sd:
                yield f"{row.name} {key}", f"{printed}, but {other} in {name}"


def _repeated(published: Published) -> Iterator[tuple[str, Row, str, bool]]:
    """Yield (file, its row, column, whether the two agree) for each result of `published` that another file prints too."""
    for name in () if published.gain_over else published.same_as:
        other = read_paper(name)
        for row in published.rows:
            theirs = other.row(row.model, row.method, row.rank or published.rank)
            for key in row.cells if theirs else ():
                if key in theirs.cells:
                    apart = abs(row.cells[key].mean - theirs.cells[key].mean)
                    yield name, row, key, apart <= published.columns[key].reading_error


def _differs(published: Published) -> Found:
    for name, row, key, agrees in _repeated(published):
        if not agrees:
            theirs = read_paper(name).value(row.model, row.method, key, row.rank or published.rank)
            yield f"{row.name} {key}", f"{row.cells[key]}, but {theirs} in {name}"


def _ranks(published: Published) -> Found:
    for name, row, key, agrees in _repeated(published):
        other = read_paper(name)
        rank = implied_rank(other, other.row(row.model, row.method, row.rank or published.rank))
        if row.rank and agrees and rank not in (None, row.rank):
            yield f"{row.name} {key}", f"the same in {name}, where the parameters are those of rank {rank}"


def _second(published: Published) -> Found:
    for row in published.rows:
        for key in row.second:
            others = [each.cells[key].mean for each in published.rows if each.model == row.model and key in each.cells]
            best = sorted(others, reverse=published.columns[key].better == "higher")
            if row.cells[key].mean != best[1]:
                yield f"{row.name} {key}", f"{row.cells[key]} is marked second best, which {best[1]} is"


def _gains(published: Published) -> Found:
    for row in published.rows if published.gain_over and published.same_as else ():
        for key, gain in row.cells.items():
            tables = [read_paper(name) for name in published.same_as]
            pairs = [
                (t.value(row.model, row.method, key), t.value(row.model, published.gain_over, key)) for t in tables
            ]
            known = [ours.mean - theirs.mean for ours, theirs in pairs if ours and theirs]
            if gain.mean not in known:
                yield f"{row.name} {key}", f"printed {gain}, but {' or '.join(map(str, known))}"


def _behind(published: Published) -> Found:
    """Find results of the method that a plain adapter reaches, here or in its first publication."""
    tables = [published, *map(read_paper, published.apart_from)]
    for row in published.rows if not published.gain_over else ():
        for key, cell in row.cells.items() if row.method in OURS else ():
            others = {(t.name, m): t.value(row.model, m, key, row.rank) for t in tables for m in BASELINES}
            above = [f"{m} has {o} in {name}" for (name, m), o in others.items() if o and o.mean >= cell.mean]
            if published.columns[key].better == "higher" and above:
                yield f"{row.name} {key}", f"{cell}, but {', '.join(above)}"


def _teacher(published: Published) -> Found:
    """Find memory beyond PiSSA's that is too small for a second model in bfloat16."""
    for row in published.rows:
        plain = published.value(row.model, "pissa", "memory")
        if row.method == "ba-lora" and plain:
            extra, whole = (
                row.cells["memory"].mean - plain.mean,
                2 * described(row.model)["parameters"] / Decimal(10**9),
            )
            if extra < whole:
                yield f"{row.name} memory", f"{extra} GB more than PiSSA, a second model has {whole:.2f} GB"


CHECKS = {
    "average": _averages,
    "units": _units,
    "parameters": _parameters,
    "copied": _copied,
    "deviation": _deviations,
    "differs": _differs,
    "rank": _ranks,
    "second": _second,
    "gain": _gains,
    "behind": _behind,
    "teacher": _teacher,
}
