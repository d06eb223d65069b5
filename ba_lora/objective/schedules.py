"""Schedules of a regularizer's weight: a factor in [0, 1] for the optimiser step `step` of `total`.

Source: the published code. As far as is known, the paper gives no equations for them.
"""

import math

from ..errors import choose


def constant(step: int, total: int, warmup: float, ramp: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(step: int, total: int, warmup: float, ramp: float) -> float:
    """From 1 down to 0.1 along half a cosine: 0.1 + 0.9 · ½(1 + cos(π·step/total))."""
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def linear_warmup(step: int, total: int, warmup: float, ramp: float) -> float:
    """step / (warmup·total), at most 1."""
    return min(step / (warmup * total), 1.0) if warmup > 0 else 1.0


def quadratic_warmup(step: int, total: int, warmup: float, ramp: float) -> float:
    """(step / (warmup·total))², at most 1."""
    return linear_warmup(step, total, warmup, ramp) ** 2


def two_phase(step: int, total: int, warmup: float, ramp: float) -> float:
    """0 for the first ⌊warmup·total⌋ steps, a linear ramp over the next max(⌊ramp·total⌋, 1), then 1."""
    start, length = math.floor(warmup * total), max(math.floor(ramp * total), 1)
    return min(max((step - start) / length, 0.0), 1.0)


SCHEDULES = {f.__name__: f for f in (constant, cosine, linear_warmup, quadratic_warmup, two_phase)}


def factor(schedule: str, step: int, total: int, warmup: float = 0.2, ramp: float = 0.05) -> float:
    """The factor of `schedule` at `step` (0 is the first) of `total`. Raises UserError for an unknown name."""
    return SCHEDULES[choose("schedule", schedule, SCHEDULES)](step, max(total, 1), warmup, ramp)


def adaptive(lowest: float, highest: float, entropy: float, classes: int) -> float:
    """The weight of a micro-batch: from `lowest` where the teacher is uniform up to `highest` where it is certain.

    lowest + (highest − lowest) · (1 − H/ln V). entropy: H, the teacher's mean entropy over the rows in nats, at the temperature of
    consistency; classes: V.
    """
    return lowest + (highest - lowest) * (1 - min(max(entropy / math.log(max(classes, 2)), 0.0), 1.0))
