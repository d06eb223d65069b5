"""Means over seeds, and tests of the difference between two methods on the same problems."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import ttest_rel

RESAMPLES = 10_000
LEVEL = 0.05  # two methods differ significantly if the corrected p is below this


def mean_sd(values: list[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation over seeds; the deviation of one seed is None."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def paired_intervals(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0) -> list[tuple[float, float, float]]:
    """Return (difference, low, high) of each pair: the mean accuracy of the first minus the second, with a 95% bootstrap interval.

    A pair: two arrays (seeds, problems) of 0 and 1, the same problems and the same seeds in the same order. Both problems and
    seeds are drawn with replacement and pairs are kept together; with one seed only the problems vary. With few seeds the interval
    tends to be too narrow. Pairs of one shape share the draws, which take longer than the rest. Raises ValueError if the shapes
    of a pair differ.
    """
    for ours, theirs in pairs:
        if ours.shape != theirs.shape or ours.ndim != 2:
            raise ValueError(f"paired results need equal (seeds, problems) shapes, got {ours.shape} and {theirs.shape}")
    differences = [ours.astype(np.float64) - theirs.astype(np.float64) for ours, theirs in pairs]
    found = {}
    for shape in dict.fromkeys(each.shape for each in differences):
        places = [place for place, each in enumerate(differences) if each.shape == shape]
        means = _resampled(np.stack([differences[place] for place in places]), seed)  # (RESAMPLES, pairs)
        lows, highs = np.quantile(means, [0.025, 0.975], axis=0)
        for place, low, high in zip(places, lows, highs, strict=True):
            found[place] = (float(differences[place].mean()), float(low), float(high))
    return [found[place] for place in range(len(pairs))]


def _resampled(differences: np.ndarray, seed: int) -> np.ndarray:
    """(pairs, seeds, problems) → (RESAMPLES, pairs): the mean of each pair in every resample."""
    pairs, seeds, problems = differences.shape
    random = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, pairs))
    for resample in range(RESAMPLES):
        of_seeds = np.bincount(random.integers(seeds, size=seeds), minlength=seeds)
        of_problems = np.bincount(random.integers(problems, size=problems), minlength=problems)
        means[resample] = differences @ of_problems.astype(np.float64) @ of_seeds / (seeds * problems)
    return means


def paired_p(ours: list[float], theirs: list[float]) -> float | None:
    """Return the two-sided p of the paired t-test over seeds; None for fewer than two seeds, or if all differences are equal.

    ours, theirs: (seeds,) scores of the same seeds in the same order.
    """
    differences = np.subtract(ours, theirs)
    if len(differences) < 2 or np.ptp(differences) < 1e-12:
        return None
    return float(ttest_rel(ours, theirs).pvalue)


def holm(values: list[float | None]) -> list[float | None]:
    """Correct p values for their number, after Holm (1979): the smallest times n, the next times n − 1, never decreasing.

    None stays None and does not count.
    """
    order = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected, highest = list(values), 0.0
    for rank, (value, place) in enumerate(order):
        highest = max(highest, min(1.0, value * (len(order) - rank)))
        corrected[place] = highest
    return corrected


def is_apart(interval: tuple[float, float] | None, corrected: float | None) -> bool:
    """Return True if two methods differ significantly: the corrected p is below LEVEL and the interval, if any, excludes 0."""
    excludes = interval is None or not interval[0] <= 0 <= interval[1]
    return excludes and corrected is not None and corrected < LEVEL
