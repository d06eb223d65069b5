"""Estimates of benchmarks that compare log-likelihoods: a mean with its standard error and its 95% interval."""

import math
from collections.abc import Mapping, Sequence

from ..harness.scores import summarise

Z = 1.959963984540054


def share(values: Sequence[float]) -> dict:
    """The share of items that count 1 (or a half), with Wilson's interval; None without items."""
    if not values:
        return {"score": None, "stderr": None, "interval": None, "n": 0}
    return {name: value for name, value in summarise(values).items() if name != "n_correct"}


def mean(values: Sequence[float]) -> dict:
    """The mean of numbers, with the interval of a normal distribution; no standard error for fewer than two."""
    n = len(values)
    if not n:
        return {"score": None, "stderr": None, "interval": None, "n": 0}
    centre = math.fsum(values) / n
    if n < 2:
        return {"score": centre, "stderr": None, "interval": None, "n": n}
    stderr = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1) / n)
    return {"score": centre, "stderr": stderr, "interval": [centre - Z * stderr, centre + Z * stderr], "n": n}


def macro(groups: Mapping[str, Sequence[float]]) -> dict:
    """The mean over groups of each group's mean; the groups, not the items, are the sample. n: items."""
    means = [math.fsum(values) / len(values) for values in groups.values()]
    return mean(means) | {"n": sum(map(len, groups.values())), "groups": len(means)}


def grouped(answers: Sequence[dict], values: Sequence[float], name: str) -> dict[str, list[float]]:
    """The values by the text `name` of the references, in order of the names."""
    found: dict[str, list[float]] = {}
    for answer, value in zip(answers, values, strict=True):
        found.setdefault(str(answer["reference"][name]), []).append(value)
    return dict(sorted(found.items()))


def above(estimate: dict, chance: float) -> bool:
    """Return True if the whole interval lies above `chance`."""
    return estimate["interval"] is not None and estimate["interval"][0] > chance


def percent(estimate: dict) -> str:
    """A share for the printed line: "59.3% of 1,508 (95% 56.8 to 61.7)"."""
    if estimate["score"] is None:
        return "undefined"
    text = f"{100 * estimate['score']:.1f}% of {estimate['n']:,}"
    if estimate["interval"] is None:
        return text
    low, high = (100 * bound for bound in estimate["interval"])
    return f"{text} (95% {low:.1f} to {high:.1f})"
