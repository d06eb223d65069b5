"""Tasks, completions and results as JSON lines: reads them with clear errors, and writes them atomically."""

import json
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path

from ba_lora.errors import UserError, short
from ba_lora.files import KINDS, atomic_write, name_of, parse_json

SCALARS = (str, int, float, date, Decimal)  # of JSON and Parquet


def check_field(record: dict, name: str, kind: str, place: str):
    """Return the value of a field, or None if it is absent or null. Raises UserError naming `place` if it is not of its kind."""
    value = record.get(name)
    is_scalar = kind == "a text or a number" and isinstance(value, SCALARS) and not isinstance(value, bool)
    if value is not None and not is_scalar and not KINDS[kind](value):
        raise UserError(f"{place}: '{name}' is {short(value)}, {kind} is needed")
    return value


def task_id(value) -> str | int:
    """Return the id of a task as in the files: a text or a whole number; anything else (a date of Parquet) as text."""
    return value if isinstance(value, str | int) else str(value)


def written(value: object) -> object:
    """Return a field as in JSON: a date or a decimal number of Parquet as text."""
    return str(value) if isinstance(value, date | Decimal) else value


def to_line(record: dict) -> str:
    """Return one JSON object as a line of valid UTF-8: half a surrogate pair, which a model can write, stays an escape."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n"


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """Write one JSON object per line, atomically."""
    with atomic_write(path) as file:
        file.writelines(map(to_line, records))


def read_lines(path: str | Path, fields: Sequence[str], limit: int | None = None) -> list[dict]:
    """Return the objects of a JSON lines file, of its first `limit` tasks; every line has `fields` and a unique (id, sample).

    Raises UserError naming the file and the line for anything else, including an empty file.
    """
    path, records, seen, tasks = Path(path), [], {}, set()
    if not path.is_file():
        raise UserError(f"file {path} does not exist; give a file with one JSON object per line ({', '.join(fields)})")
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            record = read_line(line, f"{path}, line {number}", fields)
            tasks.add(str(record["id"]))
            if limit is not None and len(tasks) > limit:
                break
            key = (str(record["id"]), record.get("sample", 0))
            if key in seen:
                raise UserError(
                    f"{path}, line {number}: id {key[0]} was already on line {seen[key]}; keep one line per task"
                )
            seen[key] = number
            records.append(record)
    if not records:
        raise UserError(f"{path} has no lines; give a file with one JSON object per line ({', '.join(fields)})")
    return records


def read_line(line: str, place: str, fields: Sequence[str]) -> dict:
    """Return the object of one line. Raises UserError naming `place` if it is not one, or a field is missing or of another type."""
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{place}: not UTF-8 text; convert the file") from None
    record = parse_json(line, place, strict=True)
    if not isinstance(record, dict):
        raise UserError(f"{place}: a {name_of(type(record))}, an object with {', '.join(fields)} is needed")
    for field in fields:
        if record.get(field) is None:
            has = ", ".join(record) or "nothing"
            raise UserError(f"{place}: no '{field}' (the line has: {has}); every line needs {', '.join(fields)}")
    for field, kind in (("completion", "a text"), ("id", "a text or a number"), ("sample", "a whole number")):
        check_field(record, field, kind, place)
    return record


def count_missing(records: list[dict], known_ids: Iterable | None, source: str) -> int | None:
    """Return how many of the data's tasks the file lacks; None if the data is not known. Raises UserError if nothing matches."""
    if known_ids is None:
        return None
    known, there = {str(known_id) for known_id in known_ids}, {str(record["id"]) for record in records}
    if not known & there:
        raise UserError(
            f"no id of {source} is a task of --data (for example {min(there)}); give the data it was made from"
        )
    return len(known - there)
