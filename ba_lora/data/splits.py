"""The rows of one split of a labelled data set: from the hub, a file, or a folder whose files are found by name.

Tab-separated files are read as GLUE publishes them: a quotation mark is an ordinary character, and one line is one row.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from ..errors import UserError
from .readers import LOADERS, check_names, warn_of_missing_parts
from .sources import read_table

TAB_SEPARATED = (".tsv", ".txt")
# Columns that number the rows of a test split, in any case; the first one present: GLUE's, the hub's, QQP's, Kaggle's QQP's.
INDEX = ("index", "idx", "id", "test_id")
Row = tuple[str, object, dict]  # its place, for errors; id; fields


def read_rows(
    data: str,
    splits: Sequence[str],
    *,
    config: str | None = None,
    folders: Sequence[str] = (),
    headless: Sequence[str] | None = None,
    broken: Counter | None = None,
    limit: int | None = None,
    numbered: bool = False,
) -> tuple[str, Iterator[Row]]:
    """(source, the first `limit` rows) of one split, under any of its names `splits`. Files are read as the rows are
    consumed.

    data: a hub id, with `config`; a file, read completely; or a folder, or a folder with a subfolder named in `folders`.
    headless: the fields of a tab-separated file without a header. broken: counts, under "broken", the lines with a wrong
    number of fields, which are left out; without it they are errors. numbered: the ids are the unique numbers in one of the
    columns INDEX, or positions from 0 without such a column. Raises UserError for anything that cannot be found or
    read.
    """
    if numbered:
        source, rows = read_rows(data, splits, config=config, folders=folders, headless=headless, limit=limit)
        return source, _numbered(rows)
    place = Path(data)
    if not place.exists():
        source = f"{data}:{config}" if config else data
        return source, _table_rows(source, splits[0], limit)
    files = [place] if place.is_file() else _files(place, splits, folders)
    rows = chain.from_iterable(
        _tab_separated(file, headless, broken)
        if file.suffix in TAB_SEPARATED
        else _table_rows(str(file), "train", limit)
        for file in files
    )
    return str(files[0] if len(files) == 1 else files[0].parent), islice(rows, limit)


def _numbered(rows: Iterable[Row]) -> Iterator[Row]:
    seen: dict[int, str] = {}  # number → place where it was seen
    last = -1
    for position, (place, key, row) in enumerate(rows):
        known = {name.lower(): name for name in row}
        name = next((known[name] for name in INDEX if name in known), None)
        if name is None and key not in (last + 1, 0):  # 0: the next file begins
            raise UserError(
                f"{place}: the rows have no numbers ({', '.join(INDEX)}), and there is a blank line before this one; remove "
                "it, or number the rows"
            )
        last, value = (key, position) if name is None else (-1, row[name])
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,18}", str(value).strip()):
            raise UserError(
                f"{place}: {name} is {str(value)[:40]!r}, a whole number is needed; the row is submitted under it"
            )
        number = int(value)
        if number in seen:
            raise UserError(
                f"{place}: {name} {number} was already in {seen[number]}; give every row a number of its own"
            )
        seen[number] = place
        yield place, number, row


def _table_rows(source: str, split: str, limit: int | None) -> Iterator[Row]:
    try:
        table = read_table(source, split=split, limit=limit)
    except RuntimeError as error:  # raised by `datasets` for a set that is a script, which it no longer runs
        raise UserError(f"{source} cannot be loaded ({error}); give a local copy of its files") from None
    empty = dict.fromkeys(table.columns)
    for number, row in table.rows:
        key = row.get("idx", number - 1)
        yield f"{source}, row {number}", key if isinstance(key, str | int) else str(key), empty | row


def _files(folder: Path, splits: Sequence[str], folders: Sequence[str]) -> list[Path]:
    """The files of a split: the one with its name, else its numbered parts, else the one with its name as a word."""
    wanted = {name.replace("-", "").lower() for name in folders}
    inner = [
        path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.replace("-", "").lower() in wanted
    ]
    folder = inner[0] if inner else folder
    there = [path for path in sorted(folder.iterdir()) if path.suffix in (*TAB_SEPARATED, *LOADERS)]
    name = "|".join(re.escape(split) for split in splits)
    for pattern in (rf"({name})", rf"({name})-\d+-of-\d+", rf"(.*[^a-z])?({name})([^a-z].*)?"):
        found = [path for path in there if re.fullmatch(pattern, path.stem)]
        kinds = sorted({path.suffix for path in found})
        if len(kinds) > 1 or (len(found) > 1 and "-of-" not in pattern):
            raise UserError(f"{folder} has several files for the split {splits[0]} ({_names(found)}); give one of them")
        if found:
            warn_of_missing_parts(found)
            return found
    raise UserError(
        f"{folder} has no file for the split {splits[0]} (it has: {_names(there) or 'none that can be read'}); "
        f"call it {' or '.join(f'{split}.tsv' for split in splits)}, .jsonl, .parquet or .csv"
    )


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _tab_separated(file: Path, headless: Sequence[str] | None, broken: Counter | None) -> Iterator[Row]:
    """The rows of a file; its fields are `headless` if the first line does not contain the last of them."""
    header, first = None, 2
    try:
        with open(file, encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if "\0" in line:
                    raise UserError(f"{file}, line {number}: a NUL byte, which no text has; fix or remove the line")
                fields = line.rstrip("\r\n").split("\t")
                if header is None and headless is not None and headless[-1] not in fields:
                    header, first = headless, 1
                elif header is None:
                    header = fields
                    check_names([name for name in fields if name], f"{file}, line 1")
                    continue
                if len(fields) == len(header):
                    yield f"{file}, line {number}", number - first, dict(zip(header, fields, strict=True))
                elif fields != [""] and broken is not None:
                    broken["broken"] += 1
                elif fields != [""]:
                    raise UserError(
                        f"{file}, line {number}: {len(fields)} fields where {len(header)} are needed "
                        "(separated by tabs; quotation marks do not join them); fix or remove the line"
                    )
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; convert the file") from None
