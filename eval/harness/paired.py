"""Statistics of paired results over items: a bootstrap and tests of no difference. The verdict is that of statistics.py.

The differences are those of two models on the same items, in the same order; items are taken as independent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
BLOCK = 2**22  # numbers drawn at once


class Difference(NamedTuple):
    """mean: of the differences. interval: its 95% bootstrap interval. inner: the 90% one, for equivalence. p: of no difference."""

    n: int
    mean: float
    interval: tuple[float, float]
    inner: tuple[float, float]
    p: float
    test: str


def difference_of(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Difference:
    """Compare two models on the same items: `ours` minus `theirs`. McNemar's exact test for zeros and ones, else sign flips.

    Raises ValueError if the lengths differ or there are no items.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"paired results need the same items, got {len(ours)} and {len(theirs)}")
    ours, theirs = (np.asarray(values, dtype=np.float64) for values in (ours, theirs))
    differences = ours - theirs
    means = resampled_means(differences, seed)
    (low, inner_low, inner_high, high) = map(float, np.quantile(means, [0.025, 0.05, 0.95, 0.975]))
    if np.isin(ours, (0, 1)).all() and np.isin(theirs, (0, 1)).all():
        p, test = mcnemar(int((differences > 0).sum()), int((differences < 0).sum())), "McNemar"
    else:
        p, test = sign_flips(differences, seed), "sign flips"
    return Difference(len(ours), float(differences.mean()), (low, high), (inner_low, inner_high), p, test)


def resampled_means(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """The mean of each of `resamples` samples of the items (N, …), drawn with replacement (resamples, …)."""
    random, means = np.random.default_rng(seed), []
    rows = max(1, BLOCK // len(values))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start), len(values)
        means.append(values[random.integers(len(values), size=size)].mean(1))
    return np.concatenate(means)


def mcnemar(more: int, less: int) -> float:
    """The exact two-sided p of McNemar's test: items that only the first model has right, and that only the second has."""
    n = more + less
    if not n:
        return 1.0
    term = tail = 1  # n over 0
    for k in range(1, min(more, less) + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / 2**n)


def sign_flips(differences: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """The two-sided p of the mean under random signs of the differences; the data count as one draw."""
    apart = differences[differences != 0]
    if not len(apart):
        return 1.0
    random, seen, extreme = np.random.default_rng(seed), abs(apart.sum()), 0
    rows = max(1, BLOCK // len(apart))
    for start in range(0, resamples, rows):
        signs = random.integers(2, size=(min(rows, resamples - start), len(apart))) * 2 - 1
        extreme += int((np.abs(signs @ apart) >= seen * (1 - 1e-12)).sum())
    return (extreme + 1) / (resamples + 1)
