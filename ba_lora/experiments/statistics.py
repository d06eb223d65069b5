"""Means over seeds, and the interval of a difference between two methods on the same problems."""

import numpy as np

RESAMPLES = 10_000


def mean_sd(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds; no deviation from one seed."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def paired_interval(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """(difference, low, high): mean accuracy of `ours` minus `theirs`, with a 95% bootstrap interval.

    ours, theirs: (seeds, problems) of 0 and 1, the same problems and the same seeds in the same order. Problems and seeds
    are both drawn with replacement, pairs kept together; from one seed only the problems vary. Few seeds make the interval
    too narrow rather than too wide. Raises ValueError when the shapes differ.
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
