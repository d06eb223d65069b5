"""The difference between two models on the same items: a bootstrap over items, with the tests and the verdict of statistics.py.

The differences are those of two models on the same items, in the same order; items are taken as independent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .statistics import BLOCK, mcnemar, sign_flips

RESAMPLES = 4000


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
