"""The sequences on which the teacher runs (--teacher_share), drawn for each optimiser step.

The consistency is a sum over rows. If each sequence is drawn with probability s and the rows of the drawn ones weigh 1/s, the
expected sum, and its expected gradient, are those of all rows. The draw is over the optimiser step: with micro-batches of B
sequences and φ uniform in [0, 1), micro-batch j runs ⌊s·B·(j+1) + φ⌋ − ⌊s·B·j + φ⌋ of them, s·B on average, and a step's number
differs from its mean by less than 1. φ depends on seed and step alone, so all ranks run as many; which sequences these are depends
on the micro-batch and the rank too. No global random generator is used, so a resumed run draws the same.
"""

import math
import random
from typing import NamedTuple

from ..errors import UserError
from ..objective.settings import REGULARIZERS, Objective


class TeacherShare(NamedTuple):
    """share: of the sequences, above 0 and at most 1. micro_batch: sequences of a full micro-batch on one process."""

    share: float = 1.0
    micro_batch: int = 1
    seed: int = 0


class Draw(NamedTuple):
    """The sequences that the teacher runs on, ascending (none: it does not run), and the weight of their rows."""

    sequences: tuple[int, ...]
    weight: float


def check_share(share: float, objective: Objective) -> None:
    """Raise UserError unless 0 < share ≤ 1, and for a share below 1 with an adaptive weight.

    An adaptive weight follows the entropy of the teacher. On the drawn rows, weight and consistency would be two estimates from
    one sample, and the expectation of their product is not the product.
    """
    if not 0 < share <= 1:
        raise UserError(f"--teacher_share must be above 0 and at most 1, got {share}")
    for each in REGULARIZERS:
        if share < 1 and getattr(objective, each.schedule) == "adaptive":
            raise UserError(
                f"--teacher_share {share} does not go with --{each.schedule} adaptive, which needs the teacher on every "
                "sequence; use --teacher_share 1 or another schedule"
            )


def phase(seed: int, step: int) -> float:
    """φ of an optimiser step, the same on every rank."""
    return random.Random(f"teacher share {seed} {step}").random()


def count(share: float, micro_batch: int, micro: int, phi: float) -> int:
    """The number of sequences that micro-batch number `micro` (from 0) of a step runs."""
    mean = share * micro_batch
    return min(math.floor(mean * (micro + 1) + phi) - math.floor(mean * micro + phi), micro_batch)


def draw(form: TeacherShare, step: int, micro: int, rank: int, present: int, may_be_short: bool = False) -> Draw:
    """The sequences of one micro-batch on one rank.

    present: sequences in it. A short micro-batch, the last one of an epoch, runs whole. may_be_short: another rank's may be short.
    If no sequence is due, a full one then runs one at weight 0: under ZeRO-3 the teacher has to run on all ranks or on none.
    Raises UserError for more sequences than `form.micro_batch`.
    """
    if present > form.micro_batch:
        raise UserError(
            f"teacher_share is set up for micro-batches of {form.micro_batch} sequences and got {present}; set its micro_batch to "
            "the largest"
        )
    if present < form.micro_batch:
        return Draw(tuple(range(present)), 1.0)
    due = count(form.share, form.micro_batch, micro, phase(form.seed, step))
    if due == 0:
        return Draw((0,), 0.0) if may_be_short else Draw((), 0.0)
    chance = random.Random(f"teacher share {form.seed} {step} {micro} {rank}")
    places = [chance.random() for _ in range(present)]
    return Draw(tuple(sorted(sorted(range(present), key=places.__getitem__)[:due])), 1.0 / form.share)
