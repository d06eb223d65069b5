"""Means over seeds, and tests of the difference between two methods on the same problems."""

import numpy as np
from scipy.stats import ttest_rel

RESAMPLES = 10_000
LEVEL = 0.05  # two methods differ significantly if the corrected p is below this


def mean_sd(values: list[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation over seeds; the deviation of one seed is None."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def paired_interval(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return (difference, low, high): mean accuracy of `ours` minus `theirs`, with a 95% bootstrap interval.

    ours, theirs: (seeds, problems) of 0 and 1, the same problems and the same seeds in the same order. Both problems and seeds
    are drawn with replacement and pairs are kept together; with one seed only the problems vary. With few seeds the interval
    tends to be too narrow. Raises ValueError if the shapes differ.
    """
    if ours.shape != theirs.shape or ours.ndim != 2:
        raise ValueError(f"paired results need equal (seeds, problems) shapes, got {ours.shape} and {theirs.shape}")
    differences = ours.astype(np.float64) - theirs.astype(np.float64)  # (seeds, problems)
    seeds, problems = differences.shape
    random = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        weights = np.bincount(random.integers(seeds, size=seeds), minlength=seeds)
        chosen = random.integers(problems, size=problems)
        means[resample] = (weights @ differences)[chosen].sum() / (seeds * problems)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


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
