"""The held-out rows of a run, encoded as its training rows are, and what run.json says about them."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..data.held_out import hold_out
from ..data.samples import Samples, Selection
from ..files import digest
from .arguments import TrainArguments

logger = logging.getLogger(__name__)


class HeldOut(NamedTuple):
    """The held-out samples, the function that makes a batch of them, and their part of run.json."""

    samples: Samples | Selection
    collate: Callable
    facts: dict


def parted(arguments: TrainArguments, rows: int) -> tuple[list[int], list[int]] | None:
    """(training rows, held-out rows) by --validation_share; None without it."""
    if not arguments.validation_share:
        return None
    return hold_out(rows, arguments.validation_share, arguments.seed)


def facts_of(arguments: TrainArguments, held: Samples | Selection, trained: Samples | Selection) -> dict:
    """The part of run.json about the held-out rows; warns if some of them are trained on as well.

    rows; tokens: all tokens of these rows; hash: of their token ids and labels in their order; also_trained: the rows whose token
    ids a training row has too.
    """
    seen = {trained.tokens(number).tobytes() for number in range(len(trained))}
    both = sum(held.tokens(number).tobytes() in seen for number in range(len(held)))
    if both:
        logger.warning(
            "%d of the %d held-out rows have the same tokens as a training row; the loss on them is no estimate of that on new data",
            both,
            len(held),
        )
    own = arguments.validation_data
    return {
        "data": own,
        "split": arguments.validation_split if own else None,
        "share": None if own else arguments.validation_share,
        "seed": None if own else arguments.seed,
        "rows": len(held),
        "tokens": int(held.lengths.sum()),
        "hash": digest([_plain(sample) for sample in held]),
        "also_trained": both,
    }


def _plain(sample: dict) -> list[Sequence]:
    """A sample without its number among all rows."""
    return [sample["input_ids"], sample["labels"]]
