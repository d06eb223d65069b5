"""Rows that are held out of the training, to look at the loss on them."""

import math
import random

from ..errors import UserError


def held_out_count(rows: int, share: float) -> int:
    """The number of held-out rows: `share` of `rows`, rounded, with a half rounded up."""
    return math.floor(share * rows + 0.5)


def hold_out(rows: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """(the numbers of the rows that are trained on, those of the held-out rows), from 0 and ascending.

    The held-out rows are drawn without replacement by a generator of their own, which the seed alone starts: they are the same for
    every method and weight. Raises UserError if the share leaves no row on one side.
    """
    count = held_out_count(rows, share)
    if not 0 < count < rows:
        side = "held-out" if count == 0 else "training"
        raise UserError(f"--validation_share {share:g} of {rows} rows leaves no {side} row; give another share")
    held = sorted(random.Random(f"validation share {seed}").sample(range(rows), count))
    chosen = set(held)
    return [row for row in range(rows) if row not in chosen], held
