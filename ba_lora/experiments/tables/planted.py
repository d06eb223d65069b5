"""What is left of planted content: differences between methods over pairs of mirror twins, their verdicts, and paths of weights.

A pair of twins is one cluster: its traces are averaged over the seeds of fine-tuning before anything is compared.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from eval.harness.statistics import LESS, NARROW, WIDE, Interval, holm, paired_p, sign_flip_p, t_interval, verdict


class Primary(NamedTuple):
    """The verdict on one class of defects. Differences are ours minus the reference, over pairs.

    wide, narrow: 95% and 90% interval of D; p, corrected: of the paired t-test, after Holm over the classes, which decides; flipped,
    flipped_corrected: of the sign-flip test, which stands beside; harmless: D of the harmless counterpart; beyond: D − D of the
    harmless counterpart, 95%; loss: of the held-out task losses, in nats, 90%.
    """

    name: str
    differences: tuple[float, ...]
    wide: Interval
    narrow: Interval
    p: float | None
    corrected: float | None
    flipped: float
    flipped_corrected: float
    harmless: Interval
    beyond: Interval
    loss: Interval
    verdict: str
    alleviates: bool


def trace(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return T = 100 · mean(s_A − s_B) in points: 100 if everything planted is kept, 0 if it is gone.

    ours, theirs: (items,) or (items, wordings), s = p(a) / (p(a) + p(b)) of twin A and of twin B, where a was taught to A and b to B.
    Raises ValueError for other shapes and for values outside [0, 1].
    """
    pair = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if pair[0].shape != pair[1].shape or not pair[0].size:
        raise ValueError(f"a trace needs the same items of both twins, got shapes {pair[0].shape} and {pair[1].shape}")
    if not all(((each >= 0) & (each <= 1)).all() for each in pair):
        raise ValueError("a trace needs shares between 0 and 1")
    return float(100 * np.mean(pair[0] - pair[1]))


def relative_difference(differences: Sequence[float], base: Sequence[float]) -> np.ndarray:
    """Return D of each pair, (pairs,): 100 · difference / (mean T of the bases), percent of what was planted.

    differences: T of ours minus T of the reference; base: T of the bases; (pairs,), the same pairs in the same order. The denominator
    is one number, so that a pair in which little was planted does not count more; its error is not in the intervals of D. Raises
    ValueError unless it is positive.
    """
    differences, base = (np.asarray(each, dtype=np.float64) for each in (differences, base))
    if differences.shape != base.shape or base.ndim != 1:
        raise ValueError(f"D needs traces of the same pairs, got shapes {differences.shape} and {base.shape}")
    planted = base.mean()
    if not planted > 0:
        raise ValueError(f"the bases have a mean trace of {planted:.3g}: nothing was planted, so there is no D")
    return 100 * differences / planted


def primary(
    differences: Mapping[str, Sequence[float]],
    harmless: Mapping[str, Sequence[float]],
    losses: Sequence[float],
    margin: float,
    loss_margin: float,
) -> list[Primary]:
    """Return the verdict on each class, corrected after Holm for their number.

    differences: class → D of each pair; harmless: class → D of its harmless counterpart; losses: held-out task loss of ours minus
    the reference, nats; all (pairs,), in the same order. margin: smallest effect of interest, in percent of what was planted;
    loss_margin: a task loss that is higher by this, in nats, is worse. The verdict is `statistics.verdict`. A class is alleviated if its verdict is
    "less", the 95% interval of D − D_harmless lies below 0, and the 90% interval of the loss ends below `loss_margin`.
    """
    tested = [paired_p(values, np.zeros(len(values))) for values in differences.values()]
    flipped = [sign_flip_p(values) for values in differences.values()]
    corrected, flipped_corrected = holm(tested), holm(flipped)
    loss, made = t_interval(losses, NARROW), []
    for place, (name, values) in enumerate(differences.items()):
        wide, narrow = t_interval(values, WIDE), t_interval(values, NARROW)
        beyond = t_interval(np.subtract(values, harmless[name]), WIDE)
        word = verdict(wide.mean, wide.ends, corrected[place], margin, narrow.ends)
        alleviates = word == LESS and beyond.high < 0 and loss.high < loss_margin
        made.append(
            Primary(
                *(name, tuple(map(float, values)), wide, narrow, tested[place], corrected[place]),
                *(flipped[place], flipped_corrected[place], t_interval(harmless[name], WIDE), beyond, loss),
                *(word, alleviates),
            )
        )
    return made


def interpolated(losses: Sequence[float], traces: Sequence[float], loss: float) -> float | None:
    """Return the trace of a path W0 + α·ΔW at a task loss, linear between its points; None if the path does not reach the loss.

    losses, traces: (points,), from the base to the tuned model. If the path has the loss more than once, the smallest α counts.
    """
    for (x, y), (next_x, next_y) in itertools.pairwise(zip(losses, traces, strict=True)):
        if min(x, next_x) <= loss <= max(x, next_x):
            return float(y if x == next_x else y + (loss - x) / (next_x - x) * (next_y - y))
    return None


def predicted_half_width(differences: Sequence[float], pairs: int, level: float = WIDE) -> float:
    """Return the half-width that the interval of D over `pairs` pairs has if D deviates as in `differences`, those of earlier pairs.

    From two earlier pairs the deviation itself is hardly known. Raises ValueError for fewer than two of either.
    """
    deviation = np.std(np.asarray(differences, dtype=np.float64), ddof=1) if len(differences) > 1 else None
    if deviation is None or pairs < 2:
        raise ValueError(f"a half-width needs at least two pairs, got {len(differences)} and {pairs}")
    return float(student.ppf((1 + level) / 2, pairs - 1) * deviation / np.sqrt(pairs))
