"""The rows of a planned run and their assumed size, as far as they are known without a hub or a tokenizer."""

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..data.glue import load_examples
from ..data.glue_sizes import ROWS, padded_tokens
from ..data.held_out import held_out_count
from ..data.sources import GENERATED_ROWS, is_generated, read_table
from ..training.arguments import TrainArguments
from ..training.validation import PARTS

RESPONSE = 200  # assumed trained tokens per sample, as on MetaMathQA, when the tokenizer is not used


class Sample(NamedTuple):
    """The assumed size of a sample: tokens, how many of them are trained (None for a classifier), and a description."""

    tokens: int
    trained: int | None
    described: str


def sample_of(arguments: TrainArguments) -> Sample:
    """Generation: max_length tokens. GLUE: the length implied by the task's published size. Otherwise: at most max_length."""
    most = arguments.max_length
    if not arguments.task:
        trained = min(RESPONSE, most - 1)
        return Sample(most, trained, f"assumed to have {most} tokens each, {trained} of them trained")
    if arguments.task not in ROWS:
        return Sample(most, None, f"assumed to have {most} tokens each, the maximum")
    tokens = min(padded_tokens(arguments.task), most)
    return Sample(
        tokens,
        None,
        f"assumed to have {tokens} tokens each, including padding, from the published size of {arguments.task}",
    )


def samples_seen(arguments: TrainArguments) -> float | None:
    """Samples of all steps together; None if the number of rows is not known."""
    if arguments.max_steps > 0:
        return arguments.max_steps * arguments.effective_batch_size
    rows, _ = trained_rows(arguments)
    return rows and rows * arguments.epochs


def steps_of(arguments: TrainArguments) -> int | None:
    """Optimiser steps of the run; None if the number of rows is not known."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    rows, _ = trained_rows(arguments)
    return None if rows is None else arguments.steps(rows)


def looks_of(arguments: TrainArguments) -> dict | None:
    """Looks at held-out rows, and these rows: {"looks", "rows"}, each None if it is not known; None for a run without held-out rows.

    The run is planned to its last step: --patience may end it earlier.
    """
    if not arguments.validation_data and not arguments.validation_share:
        return None
    if arguments.validation_data:
        where = arguments.validation_data, None, arguments.validation_split, arguments.validation_limit
        rows, _ = _count(arguments.task, *where)
    else:
        rows, _ = _rows(arguments)
        rows = rows and held_out_count(rows, arguments.validation_share)
    steps = steps_of(arguments)
    looks = steps and math.ceil(steps / (arguments.validation_steps or math.ceil(steps / PARTS)))
    return {"looks": looks, "rows": rows}


def trained_rows(arguments: TrainArguments) -> tuple[int | None, str]:
    """(rows that are trained on, how that is known). A hub is not queried; there the limit is assumed to be reached."""
    rows, known = _rows(arguments)
    return rows and rows - held_out_count(rows, arguments.validation_share), known


def _rows(arguments: TrainArguments) -> tuple[int | None, str]:
    """(rows of the data, how that is known)."""
    return _count(arguments.task, arguments.data, arguments.data_path, arguments.data_split, arguments.limit)


def _count(
    task: str | None, data: str | None, path: str | None, split: str, limit: int | None
) -> tuple[int | None, str]:
    if task and not (path or data):
        rows = ROWS.get(task)
        return (min(rows, limit or rows), "published") if rows else (limit, "unknown")
    if task:
        return _counted(task, data, path, split, limit), "counted"
    if is_generated(data) and not path:
        return limit or GENERATED_ROWS, "generated"
    if path or Path(data).exists() or Path(data.rpartition(":")[0] or data).exists():
        return _counted(None, data, path, split, limit), "counted"
    return (limit, "limit") if limit else (None, "unknown")


@lru_cache(maxsize=64)
def _counted(task: str | None, data: str | None, path: str | None, split: str, limit: int | None) -> int:
    """Rows of local data, counted once for all runs on them."""
    return len(
        load_examples(task, split, path or data, limit).ids if task else read_table(data, path, split, limit).rows
    )
