"""Means over seeds, intervals and tests of the difference between two methods on the same problems, and the verdict on it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.05  # a difference counts only if its corrected p is below this
WIDE, NARROW = 0.95, 0.90  # levels of the intervals that decide "less" and "more", and "equivalent"
LESS, MORE, EQUIVALENT, UNDECIDED = "less", "more", "equivalent", "undecided"
MOST_FLIPPED = 20  # differences whose 2^n patterns of signs are enumerated
FLIPS = 4000  # patterns of signs that are drawn where there are more
BLOCK = 2**22  # numbers drawn at once


class Interval(NamedTuple):
    """An estimate and the ends of its interval."""

    mean: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high


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
    from scipy.stats import ttest_rel  # takes a second, which --help does without

    return float(ttest_rel(ours, theirs).pvalue)


def t_interval(differences: Sequence[float], level: float = WIDE) -> Interval:
    """Return mean and Student's interval of `differences`, (clusters,), with clusters − 1 degrees of freedom.

    A cluster is a seed or a pair of models, and the differences are paired within it. With few clusters a percentile bootstrap covers
    less than its level; this interval does not, if the differences are about normal. Raises ValueError for fewer than two.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs a list of at least two differences, got shape {values.shape}")
    return _around(values.mean(), values.var(ddof=1) / len(values), len(values) - 1, level)


def crossed_interval(differences: np.ndarray, level: float = NARROW) -> Interval:
    """Return mean and interval of `differences`, (seeds, problems), for other seeds and other problems of the same kind.

    It is the t-interval over seeds, with seeds − 1 degrees of freedom, and a variance that also counts the choice of the problems: that
    of a mean with both as crossed random effects, (max(M_s, M_e) + max(M_p − M_e, 0)) / (seeds · problems), where M are the mean
    squares of seeds, problems and residual. So it is never narrower than the t-interval over seeds. A bootstrap over both counts
    the residual about three times, which makes it too wide for many seeds. Raises ValueError for fewer than two seeds.
    """
    mean, of_seeds, of_problems, size = _crossed_parts(differences)
    return _around(mean, (of_seeds + of_problems) / size, len(differences) - 1, level)


def crossed_test(differences: np.ndarray) -> tuple[Interval, Interval, float | None]:
    """Return the 95% interval of `differences`, (seeds, problems), the 90% one, and the two-sided p of no difference.

    All three are of Student's t with the variance of `crossed_interval` and Satterthwaite's degrees of freedom, (S + P)² / (S² / (seeds − 1) +
    P² / (problems − 1)), where S and P are the shares of seeds and problems in it. So a few seeds are enough where problems are the
    larger source of error, and where seeds are, this is the t-test over seeds. In between an interval of two seeds covers too
    little: in simulations 89% instead of 95% at worst, 92% for three seeds. p is None if all differences are equal. Raises ValueError for fewer than two
    seeds or problems.
    """
    mean, of_seeds, of_problems, size = _crossed_parts(differences)
    seeds, problems = np.shape(differences)
    variance = (of_seeds + of_problems) / size
    if variance * size < 1e-24:
        return Interval(mean, mean, mean), Interval(mean, mean, mean), None
    freedom = (of_seeds + of_problems) ** 2 / (of_seeds**2 / (seeds - 1) + of_problems**2 / (problems - 1))
    from scipy.stats import t as student

    p = float(2 * student.sf(abs(mean) / np.sqrt(variance), freedom))
    return _around(mean, variance, freedom, WIDE), _around(mean, variance, freedom, NARROW), p


def _crossed_parts(differences: np.ndarray) -> tuple[float, float, float, int]:
    """(mean, what seeds and what problems add to the variance of the mean times size, size) of crossed random effects."""
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 2:
        raise ValueError(f"an interval needs at least two seeds and two problems, got shape {values.shape}")
    seeds, problems = values.shape
    of_seeds, of_problems, mean = values.mean(1), values.mean(0), values.mean()
    rest = values - of_seeds[:, None] - of_problems + mean
    residual = (rest**2).sum() / ((seeds - 1) * (problems - 1))
    by_seeds = max(problems * of_seeds.var(ddof=1), residual)
    return float(mean), by_seeds, max(seeds * of_problems.var(ddof=1) - residual, 0), values.size


def _around(mean: float, variance: float, freedom: float, level: float) -> Interval:
    from scipy.stats import t as student

    half = student.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
    return Interval(float(mean), float(mean - half), float(mean + half))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of the mean of `differences`, (clusters,), among its values under all 2^n patterns of signs.

    The observed pattern counts, so p is at least 2 / 2^n unless all are 0. It assumes only that each difference is as likely to be
    positive as negative. Raises ValueError for no differences and for more than MOST_FLIPPED, for which `sign_flips` draws some.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not 0 < len(values) <= MOST_FLIPPED:
        raise ValueError(f"all signs are tried for 1 to {MOST_FLIPPED} differences, got shape {values.shape}")
    sums = values[:1]  # the first sign may stay: the opposite pattern has the same absolute sum
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    rounding = 1e-12 * np.abs(values).sum()
    return float(np.mean(np.abs(sums) >= abs(values.sum()) - rounding))


def sign_flips(differences: np.ndarray, seed: int = 0, resamples: int = FLIPS) -> float:
    """The two-sided p of the mean among its values under random patterns of signs, as `sign_flip_p` for many items; the data count as one."""
    apart = differences[differences != 0]
    if not len(apart):
        return 1.0
    random, seen, extreme = np.random.default_rng(seed), abs(apart.sum()), 0
    rows = max(1, BLOCK // len(apart))
    for start in range(0, resamples, rows):
        signs = random.integers(2, size=(min(rows, resamples - start), len(apart))) * 2 - 1
        extreme += int((np.abs(signs @ apart) >= seen * (1 - 1e-12)).sum())
    return (extreme + 1) / (resamples + 1)


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
    """Return True if a difference is not 0: the corrected p is below LEVEL and the 95% interval, if any, excludes 0."""
    excludes = interval is None or not interval[0] <= 0 <= interval[1]
    return excludes and corrected is not None and corrected < LEVEL


def verdict(
    estimate: float,
    interval: tuple[float, float] | None,
    corrected: float | None,
    margin: float | None = None,
    narrow: tuple[float, float] | None = None,
) -> str:
    """Return "less", "more", "equivalent" or "undecided": the one rule for every difference.

    estimate: the difference; interval: its 95% interval; corrected: its p after Holm; margin: the smallest difference of interest,
    positive, or None if none was fixed in advance; narrow: the 90% interval; all in one unit.

    less: `is_apart`, below 0 and, with a margin, estimate <= −margin. more: its mirror image.
    equivalent: a margin was fixed, and the whole 90% interval lies within ±margin (two one-sided tests, each at 5%).
    undecided: none of these. It does not mean that there is no difference.
    """
    if is_apart(interval, corrected) and abs(estimate) >= (margin or 0):
        return LESS if estimate < 0 else MORE
    if margin is not None and narrow is not None and -margin <= narrow[0] and narrow[1] <= margin:
        return EQUIVALENT
    return UNDECIDED
