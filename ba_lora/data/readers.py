"""Read the rows of local files: JSON, CSV and Parquet.

Every value keeps its type from the file: a text that looks like a date stays a text, and an integer keeps all its digits.
Files are read again each time, so no cache can be out of date. A broken row gives a one-line error that names it.
"""

import csv
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from ..errors import UserError, short
from ..files import STRICT, json_reason, name_of, parse_json

logger = logging.getLogger(__name__)

LOADERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
ENDINGS = ", ".join(LOADERS)
BLOCK = 1 << 20  # characters of a JSON list read at once
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape for half a surrogate pair
MARKS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}  # possible separators between the fields of a row
BLANKS = re.compile(r"[ \t\r\n]*")
Found = tuple[str, object]  # (its place in the file, the value)


def read_files(files: Sequence[Path], separator: str = ",") -> tuple:
    """(column names, rows) of files of one kind, concatenated. Rows are a list of dicts, or an Arrow table for Parquet.

    Rows of JSON lack the fields that are null. separator: between the fields of a CSV. Raises UserError naming the file, and
    the line or entry if there is one.
    """
    ending = files[0].suffix
    if ending not in LOADERS and separator == ",":
        raise UserError(f"{files[0]} ends in '{ending}'; {ENDINGS} can be read")
    try:
        if separator != ",":
            return _read_csv(files, separator)
        return {"json": _read_json, "csv": _read_csv, "parquet": _read_parquet}[LOADERS[ending]](files)
    except OSError as error:
        raise UserError(f"{files[0]} cannot be read: {error.strerror or error}") from None


def warn_of_missing_parts(files: Sequence[Path]) -> None:
    """Warn if the names of `files` imply more parts ("train-00000-of-00002") than there are."""
    counts = {int(found[1]) for file in files if (found := re.search(r"-\d+-of-(\d+)$", file.stem))}
    if len(counts) == 1 and len(files) < max(counts):
        logger.warning("%s: only %d of %d parts are here", files[0].parent, len(files), *counts)


# JSON


def json_lines(file: BinaryIO, name: str) -> Iterator[Found]:
    """(its place, value) of each nonblank line. `name` is the file's name in errors."""
    for number, line in enumerate(file, 1):
        place = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{place} is not UTF-8 text; convert the file") from None
        if text.strip():
            value = parse_json(text, place, strict=True)
            if SURROGATE.search(text):
                _check_text(value, place)
            yield place, value


def objects(found: Iterable[Found]) -> Iterator[dict]:
    """The objects in `found`. UserError for anything else, and for a field that is a list or an object in only some rows."""
    kinds: dict[str, tuple[type, str]] = {}  # field → (type, place where it was first seen)
    for place, row in found:
        if not isinstance(row, dict):
            raise UserError(f"{place}: a {name_of(type(row))}, an object with fields is needed")
        for name, value in row.items():
            if value is None:
                continue
            kind, first = kinds.setdefault(name, (type(value), place))
            if kind is not type(value) and not {list, dict}.isdisjoint((kind, type(value))):
                raise UserError(
                    f"{place}: field {short(name)} is a {name_of(type(value))}, and a {name_of(kind)} in {first}; fix one of them"
                )
        yield row


def _read_json(files: Sequence[Path]) -> tuple[list[str], list[dict]]:
    rows, columns = [], {}
    for row in objects(found for file in files for found in _found(file)):
        if not row.keys() <= columns.keys():
            columns |= dict.fromkeys(row)
        rows.append({name: value for name, value in row.items() if value is not None})
    if not columns:
        raise UserError(f"{files[0]} has no rows")
    return list(columns), rows


def _found(file: Path) -> Iterator[Found]:
    """The rows of a JSON file: one per line, a list of rows, or, in a .json file, one object over several lines."""
    with open(file, "rb") as data:
        opening = data.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        data.seek(0)
        if opening.startswith(b"[") or (file.suffix == ".json" and opening.partition(b"\n")[0].strip() == b"{"):
            yield from _document(file)
        else:
            yield from json_lines(data, str(file))


class _Pieces:
    """A text that is read piece by piece; `at` is the start of the part that has not been parsed."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.at = file, "", 0

    def more(self) -> bool:
        block = self.file.read(max(BLOCK, 2 * (len(self.text) - self.at)))
        self.text, self.at = self.text[self.at :] + block, 0
        return bool(block)

    def mark(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            self.at = BLANKS.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self, place: str):
        """The value that begins here."""
        while True:
            try:
                value, end = STRICT.raw_decode(self.text, self.at)
            except (ValueError, RecursionError):
                if not self.more():
                    raise
                continue
            if SURROGATE.search(self.text, self.at, end):
                _check_text(value, place)
            self.at = end
            return value


def _document(file: Path) -> Iterator[Found]:
    """The entries of a JSON list, or the file's single object."""
    where = str(file)
    try:
        with open(file, encoding="utf-8-sig", newline="") as data:
            pieces = _Pieces(data)
            if pieces.mark() == "{":
                yield where, pieces.value(where)
            else:
                for number, value in enumerate(_entries(pieces, where), 1):
                    yield f"{where}, entry {number}", value
            if pieces.mark():
                raise ValueError("there is more after its end")
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8 text; convert the file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({json_reason(error)}); fix the file") from None


def _entries(pieces: _Pieces, where: str) -> Iterator:
    """The values of the list that begins here. Raises ValueError if it is not a valid list."""
    number, mark = 0, ","
    pieces.at += 1
    while not (number == 0 and pieces.mark() == "]"):
        number += 1
        if mark != ",":
            raise ValueError(f"entry {number}: no comma before it" if mark else "the list is not closed")
        try:
            value = pieces.value(f"{where}, entry {number}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"entry {number}: {json_reason(error)}") from None
        yield value
        mark = pieces.mark()
        if mark == "]":
            break
        pieces.at += bool(mark)
        pieces.mark()
    pieces.at += 1


def _check_text(value, place: str) -> None:
    """Raise UserError if a text holds half of a surrogate pair, which neither files nor tokenizers accept."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(
            f"{place}: {half} is half of a surrogate pair, not a character; fix or remove the line"
        ) from None


def _listed(names: list[str]) -> str:
    text = ", ".join(" ".join(name.split()) for name in names)
    return text if len(text) <= 200 else text[:197] + "..."


# CSV


def _read_csv(files: Sequence[Path], separator: str = ",") -> tuple[list[str], list[dict]]:
    rows, header = [], []
    for file in files:
        names, found = read_csv(file, separator)
        if header and names != header:
            raise UserError(f"{file} has the columns {_listed(names)}, and {files[0]} {_listed(header)}; give one file")
        header = names
        rows += [row for _, row in found]
    if not rows:
        raise UserError(f"{files[0]} has no rows")
    return header, rows


def check_names(names: Sequence[str], place: str) -> None:
    """Raise UserError if two columns have the same name."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{place}: the header names {short(name)} {names.count(name)} times; give every column its own name"
            )


def read_csv(file: Path, separator: str = ",") -> tuple[list[str], Iterator[tuple[str, dict]]]:
    """(column names, (its place, row)s) of a file with a header and separated fields; every value is a text.

    An unnamed first column is an index, as pandas writes it, and is dropped. Raises UserError naming the line of a row that
    has more or fewer fields than the header: one comma too many would shift every value after it.
    """
    if len(separator) != 1:
        raise UserError(f"{file}: the separator is {separator!r}, one character is needed")
    mark = MARKS.get(separator, repr(separator))
    found = _csv_rows(file, separator)
    place, header = next((row for row in found if not _is_blank(row[1])), (str(file), []))
    if not header:
        raise UserError(f"{file} has no rows")
    for other, name in MARKS.items():
        if len(header) == 1 and other in header[0]:
            raise UserError(f"{place}: the fields of the header are separated by {name}s; separate all by {mark}s")
    check_names(header, place)
    if "" in header[1:]:
        raise UserError(f"{place}: column {header.index('', 1) + 1} of the header has no name; give it one")
    index = header[0] == ""

    def rows() -> Iterator[tuple[str, dict]]:
        for place, fields in found:
            if len(header) > 1 and _is_blank(fields):
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{place}: {len(fields)} fields where the header has {len(header)} ({_listed(header)}); put a field "
                    f"that holds a {mark} or a line break into double quotes, and leave no {mark} at the end"
                )
            row = dict(zip(header, fields, strict=True))
            if index:
                del row[""]
            yield place, row

    return header[index:], rows()


def _is_blank(fields: list[str]) -> bool:
    return len(fields) == 1 and not fields[0].strip()


def _csv_rows(file: Path, separator: str) -> Iterator[tuple[str, list[str]]]:
    """(the place where it begins, fields) of each row, skipping empty lines."""
    limit = csv.field_size_limit(sys.maxsize)
    place = f"{file}, line 1"
    try:
        with open(file, encoding="utf-8-sig", newline="") as data:
            reader = csv.reader(_without_nul(data, file), delimiter=separator, strict=True)
            for fields in reader:
                if fields:
                    yield place, fields
                place = f"{file}, line {reader.line_num + 1}"
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; convert the file") from None
    except csv.Error as error:
        reason = "a quoted field is not closed" if "unexpected end" in str(error) else str(error)
        raise UserError(
            f"{place}: {reason}; a field in double quotes ends with one, and one inside it is written twice"
        ) from None
    finally:
        csv.field_size_limit(limit)


def _without_nul(lines: Iterable[str], file: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise UserError(
                f"{file}, line {number}: a NUL byte, which no text has; is this UTF-8 text? convert the file"
            )
        yield line


# Parquet


def _read_parquet(files: Sequence[Path]) -> tuple:
    import pyarrow.parquet  # imported here because it is slow to import

    tables = []
    for file in files:
        with open(file, "rb") as data:
            if data.read(4) != b"PAR1":
                raise UserError(f"{file} " + ("is not a Parquet file" if file.stat().st_size else "has no rows"))
        try:
            with pyarrow.parquet.ParquetFile(file) as data:
                tables.append(data.read())
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
        check_names(tables[-1].column_names, str(file))
    try:
        table = pyarrow.concat_tables(tables, promote_options="default")
    except pyarrow.ArrowException:  # a column's type differs between files; each row keeps its own, as in JSON
        return _rows_of(tables, files[0])
    if not table.num_rows:
        raise UserError(f"{files[0]} has no rows")
    return table.column_names, table


def _rows_of(tables: Sequence, place: Path) -> tuple[list[str], list[dict]]:
    """(column names, rows) of Arrow tables."""
    columns = list(dict.fromkeys(name for table in tables for name in table.column_names))
    try:
        rows = [row for table in tables for row in table.to_pylist()]
    except (ValueError, OverflowError) as error:  # as in sources.read_table
        raise UserError(f"{place} or a file beside it cannot be read: {error}") from None
    return columns, [{name: value for name, value in row.items() if value is not None} for row in rows]


def reason_of(error: BaseException) -> str:
    """The first line of the innermost message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
