"""Rows of a data source: a local file or folder (`readers`), the hub (`library`), or the generator.

A name is a path, a hub id, a hub id with a subfolder or config ("fxmeng/pissa-dataset:metamath", "openai/gsm8k:main"), or
generated rows, "tinymath:SPLIT[:SEED]" or "planted:SPLIT[:SEED]".
"""

import os
import random
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, choose, shortened
from ..folders.places import is_path
from . import tinymath
from .planted import rows as planted
from .readers import ENDINGS, LOADERS, read_files, reason_of

GENERATED_ROWS = 4000  # rows of a generated split, unless a limit is given
GENERATORS = {  # prefix: (its splits, rows of (split, count, seed))
    "tinymath": (tuple(tinymath.SPLITS), tinymath.generate),
    "planted": (tuple(planted.SPLITS) + planted.MIXED, planted.planted_rows),
}


class Table(NamedTuple):
    """Rows with their numbers in the source (from 1); `columns` are all the names that occur in the rows."""

    source: str
    columns: list[str]
    rows: list[tuple[int, dict]]


def read_table(
    data: str,
    path: str | None = None,
    split: str = "train",
    limit: int | None = None,
    shuffle_seed: int | None = None,
) -> Table:
    """The first `limit` rows of `data`, after shuffling all of them if a seed is given.

    path: a local copy, a file or a folder, to read instead of `data`; the subfolder of `data` applies to it. A file is read
    completely, whatever the split. A field without a value is left out of its row.

    Raises UserError naming the source (and the line) if it is missing, empty, broken, or cannot be reached.
    """
    if is_generated(data) and not path:
        records = generated_rows(data, limit or GENERATED_ROWS)
        source, columns = data, list(records[0])
    else:
        source, columns, records = _open(data, path, split)
    if not len(records):
        raise UserError(f"{source} has no rows")
    numbers = list(range(len(records)))
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(numbers)
    numbers = numbers[:limit]
    try:
        chosen = _choose(records, numbers)
    except UnicodeDecodeError:  # Arrow does not validate the bytes
        raise UserError(f"{source} is not UTF-8 text; convert the file") from None
    except (ValueError, OverflowError) as error:  # a date of Parquet that Python cannot hold
        raise UserError(f"{source} cannot be read: {reason_of(error)}") from None
    return Table(source, columns, [(number + 1, row) for number, row in zip(numbers, chosen, strict=True)])


def check_source(data: str, path: str | None = None) -> None:
    """Raise UserError if `data`, or its local copy `path`, is known to be missing, without opening it."""
    if is_generated(data) and not path:
        generated_rows(data, 1)
    else:
        _find(data, path)


def _choose(records, numbers: list[int]) -> list[dict]:
    """The rows with these numbers (from 0) of a list, an Arrow table or a Dataset, without fields that are null."""
    if isinstance(records, list):
        return [records[number] for number in numbers]
    if hasattr(records, "select") and hasattr(records, "to_list"):  # a Dataset
        rows = records.select(numbers).to_list()
    elif numbers == list(range(len(numbers))):
        rows = records.slice(0, len(numbers)).to_pylist()
    else:
        rows = records.take(numbers).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def is_generated(data: str) -> bool:
    """Return True if the name `data` is that of generated rows."""
    return data.partition(":")[0] in GENERATORS and ":" in data


def check_generated(data: str) -> tuple[str, str, int]:
    """Return (generator, split, seed) of "tinymath:SPLIT:SEED". Raises UserError for an unknown split or an invalid seed."""
    generator, _, rest = data.partition(":")
    split, _, seed = rest.partition(":")
    choose(f"{generator} split", split, GENERATORS[generator][0])
    if seed and not seed.isdigit():
        raise UserError(f"--data {data}: the seed '{seed}' is not an integer; write {generator}:{split}:0")
    return generator, split, int(seed or 0)


def generated_rows(data: str, count: int) -> list[dict]:
    """Return `count` generated rows. Raises UserError for an unknown split or an invalid seed."""
    generator, split, seed = check_generated(data)
    return GENERATORS[generator][1](split, count, seed)


def _open(data: str, path: str | None, split: str) -> tuple:
    """(its name in errors, its columns, its rows) of the source that `data` and `path` name."""
    name, part, place = _find(data, path)
    if os.path.isfile(place):
        return str(place), *read_files([place])
    if os.path.isdir(place):
        from . import library  # imports `datasets`, which takes seconds

        with library.quiet():
            return library.open_folder(place, part, split)
    from . import library

    with library.quiet():
        return data, *library.load_named(name, part, split)


def _find(data: str, path: str | None) -> tuple[str, str, Path]:
    """(its name, the subfolder or config, the path) of a source. Raises UserError for a path that does not exist."""
    name, part = data, ""
    if not os.path.exists(data) and ":" in data:  # False for what no path can be, such as a name of 300 letters
        name, _, part = data.rpartition(":")
    place = Path(path or name)
    if not os.path.exists(place) and (path or place.suffix in LOADERS or name.count("/") != 1 or is_path(name)):
        raise UserError(
            f"data file {shortened(str(place))} does not exist; give the path of a file ({ENDINGS}) or a folder, or a hub id (OWNER/NAME)"
        )
    return name, part, place
