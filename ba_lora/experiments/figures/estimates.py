"""Quantities shown in figures, with their units, as mean and standard deviation over seeds."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from eval.harness.statistics import mean_sd

from ...canvas import Estimate
from ..tables.columns import MEASURES, OF_GIVEN_TEXTS, PERCENT, Column

if TYPE_CHECKING:  # it imports torch, which figures do not need
    from ..results import Result


class Quantity(NamedTuple):
    """A quantity measured in each run. label: includes the unit; of: result → number or None; digits: after the point."""

    label: str
    of: Callable[["Result"], float | None]
    digits: int = 1


def quantities(results: Sequence["Result"]) -> list[Quantity]:
    """Return the scores that any result has, then the other measurements; for classifiers, those of the first score."""
    metrics = {name: score.metric for result in results for name, score in result.scores.items()}
    made = [_score(name, metric) for name, metric in metrics.items()]
    first = next(iter(metrics), None)
    made += [_measure(column, first) for column in MEASURES if column.figure]
    return [each for each in made if any(each.of(result) is not None for result in results)]


def _score(name: str, metric: str) -> Quantity:
    """Show a judge's rating as it is and everything else in percent."""
    is_rating, unit = "1 to 10" in metric, OF_GIVEN_TEXTS.get(metric, PERCENT)
    scale = 1 if is_rating else unit.scale

    def of(result: "Result") -> float | None:
        score = result.scores.get(name)
        return None if score is None or score.score is None else scale * score.score

    return Quantity(f"{name}: {metric}" + ("" if is_rating else f", {unit.name}"), of, 2 if is_rating else unit.digits)


def _measure(column: Column, first: str | None) -> Quantity:
    """first: the score whose value is shown, for a measure that has one for each score."""

    def of(result: "Result") -> float | None:
        value = result.measures.get(column.key)
        if column.by_score:
            value = (value or {}).get(first)
        return None if value is None else column.scale * value

    return Quantity(f"{first}: {column.figure}" if column.by_score else column.figure, of, column.digits)


def estimate(results: Sequence["Result"], quantity: Quantity) -> Estimate | None:
    """Return mean and deviation over seeds, or None without data. If a seed has two results, the first counts."""
    by_seed = {}
    for result in results:
        value = quantity.of(result)
        if value is not None:
            by_seed.setdefault(result.seed, value)
    if not by_seed:
        return None
    mean, sd = mean_sd(list(by_seed.values()))
    text = f"{mean:.{quantity.digits}f}" + ("" if sd is None else f" ± {sd:.{quantity.digits}f}")
    return Estimate(mean, sd, tuple(by_seed.values()), text)


def group_of(result: "Result") -> str:
    """Return model and data, which runs must share for their curves and costs to be compared."""
    return ", ".join(part for part in (result.variant.model, result.data) if part)


def about_seeds(results: Sequence["Result"], error: str = "error bars") -> str:
    """Return a sentence for a caption: how many seeds are behind a mean, and what the error bars are."""
    seeds = {}
    for result in results:
        if result.seed is not None:
            seeds.setdefault((result.variant, result.data), set()).add(result.seed)
    counts = sorted({len(each) for each in seeds.values()}) or [1]
    if counts == [1]:
        return f"1 seed, so no {error}."
    base = " The base is one model." if any(result.seed is None for result in results) else ""
    some = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"Mean over {some} seeds; {error}: ± 1 standard deviation over the seeds.{base}"
