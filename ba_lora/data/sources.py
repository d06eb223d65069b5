"""Rows from where the data is: a local file or folder, the hub, or the generator. The `datasets` library loads and caches.

A name is a path, a hub id, a hub id with a subfolder or config ("fxmeng/pissa-dataset:metamath", "openai/gsm8k:main"), or
"tinymath:SPLIT[:SEED]". A local copy of a hub folder gives the same rows as the hub does.
"""

import csv
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, Features, Value, disable_progress_bars, load_dataset
from datasets.data_files import DataFilesList, get_data_patterns
from datasets.exceptions import DatasetsError
from datasets.utils.logging import CRITICAL, get_verbosity, set_verbosity

from ..errors import UserError, choose
from .tinymath import SPLITS, generate

LOADERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
ENDINGS = ", ".join(LOADERS)
TINYMATH_ROWS = 4000  # of a generated split, unless a limit says otherwise
LOADER_ERRORS = (OSError, ValueError, TypeError, StopIteration, DatasetsError)  # StopIteration: a file without rows


class Table(NamedTuple):
    """Rows with their numbers in the source (from 1); `columns` are the names that any of its rows has."""

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
    """The first `limit` rows of `data`, after a shuffle of all of them where a seed is given.

    path: a local copy, a file or a folder, in place of what `data` names; the subfolder of `data` applies to it. A file is
    read whole, whatever the split. A field without a value is left out of its row.

    Raises UserError naming the source (and the line) when it is missing, empty, broken, or cannot be reached.
    """
    if data.startswith("tinymath:") and not path:
        records = tinymath_rows(data, limit or TINYMATH_ROWS)
        source, columns = data, list(records[0])
    else:
        with _quiet_loader():
            source, records = _open(data, path, split)
        columns = records.column_names
    if not len(records):
        raise UserError(f"{source} has no rows")
    numbers = list(range(len(records)))
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(numbers)
    numbers = numbers[:limit]
    try:
        chosen = records.select(numbers).to_list() if isinstance(records, Dataset) else [records[i] for i in numbers]
    except UnicodeDecodeError:  # Arrow takes the bytes as they are
        raise UserError(f"{source} is not UTF-8 text; convert the file") from None
    rows = [{name: value for name, value in row.items() if value is not None} for row in chosen]
    return Table(source, columns, [(number + 1, row) for number, row in zip(numbers, rows, strict=True)])


def tinymath_rows(data: str, count: int) -> list[dict]:
    """`count` generated problems of "tinymath:SPLIT[:SEED]". Raises UserError for an unknown split or a strange seed."""
    split, _, seed = data.removeprefix("tinymath:").partition(":")
    choose("tinymath split", split, SPLITS)
    if seed and not seed.isdigit():
        raise UserError(f"--data {data}: the seed '{seed}' is no whole number; write tinymath:{split}:0")
    return generate(split, count, seed=int(seed or 0))


@contextmanager
def _quiet_loader() -> Iterator[None]:
    """No bars (the encoding has its own) and no messages beside our one line."""
    before = get_verbosity()
    disable_progress_bars()
    set_verbosity(CRITICAL)
    try:
        yield
    finally:
        set_verbosity(before)


def _open(data: str, path: str | None, split: str) -> tuple[str, Dataset]:
    """(what errors call it, its rows), from the place that `data` and `path` name."""
    name, part = data, ""
    if not Path(data).exists() and ":" in data:
        name, _, part = data.rpartition(":")
    place = Path(path or name)
    if place.is_file():
        return str(place), _load_files([place])
    if place.is_dir():
        return _open_folder(place, part, split)
    if path or place.suffix in LOADERS or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"data file {place} does not exist; give the path of a file ({ENDINGS}) or a folder, or a hub id (OWNER/NAME)"
        )
    return data, _load_named(name, part, split)


def _open_folder(folder: Path, part: str, split: str) -> tuple[str, Dataset]:
    """A local folder in the hub's layout: its subfolder `part`, or the config `part` that its README names."""
    if part and not (folder / part).is_dir():
        return f"{folder}:{part}", _load_named(str(folder), part, split)
    folder = folder / part
    try:
        patterns = get_data_patterns(str(folder))
    except FileNotFoundError:
        raise UserError(f"data folder {folder} holds no data files ({ENDINGS})") from None
    choose(f"split of {folder},", split, [str(known) for known in patterns])
    found = DataFilesList.from_patterns(patterns[split], base_path=str(folder.resolve()))
    files = sorted({Path(file) for file in found if Path(file).suffix in LOADERS})
    if not files:
        raise UserError(f"data folder {folder} holds no data files ({ENDINGS})")
    places = sorted({str(file.parent.relative_to(folder.resolve())) for file in files})
    if len(places) > 1:
        raise UserError(
            f"data folder {folder} holds {', '.join(places)}; name one of them, as in --data OWNER/NAME:{places[0]}"
        )
    endings = sorted({file.suffix for file in files})
    if len(endings) > 1:
        raise UserError(
            f"data folder {folder} holds {split} files of several kinds ({', '.join(endings)}); give one file"
        )
    return str(folder), _load_files(files)


def _load_named(name: str, part: str, split: str) -> Dataset:
    """A hub id, or a folder with a README: `part` is one of its configs, else one of its folders."""
    whole = f"{name}:{part}" if part else name
    try:
        try:
            return load_dataset(name, part or None, split=split)
        except ValueError as error:
            if not part or "BuilderConfig" not in str(error):
                raise
            return load_dataset(name, data_dir=part, split=split)
    except LOADER_ERRORS as error:
        if Path(name).is_dir():
            raise UserError(f"data folder {name} has neither a folder nor a config '{part}' that opens") from None
        if isinstance(error, OSError):
            raise UserError(
                f"data '{whole}' is neither a file nor a folder here, and the hub did not give it (offline, or no such id); "
                "download it on a connected machine and give its file or folder (--data_path when training, --data when evaluating)"
            ) from None
        raise UserError(f"data '{whole}', split {split}, cannot be loaded from the hub: {_reason(error)}") from None


def _load_files(files: list[Path]) -> Dataset:
    """Local files of one kind, as one table."""
    ending = files[0].suffix
    if ending not in LOADERS:
        raise UserError(f"{files[0]} ends in '{ending}'; {ENDINGS} can be read")
    options = {}
    if ending == ".csv":  # every field is a text: "007" keeps its noughts, "NA" is a word
        names = _csv_header(files[0])
        options = {"features": Features({name: Value("string") for name in names}), "keep_default_na": False}
    try:
        return load_dataset(
            LOADERS[ending], data_files={"train": [str(file) for file in files]}, split="train", **options
        )
    except LOADER_ERRORS as error:
        for file in files:
            _explain(file)
        if "corresponds to no data" in str(error):
            raise UserError(f"{files[0]} has no rows") from None
        raise UserError(f"{files[0]} cannot be read: {_reason(error)}") from None


def _csv_header(file: Path) -> list[str]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            names = next(csv.reader(lines), [])
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; convert the file") from None
    if not names:
        raise UserError(f"{file} has no rows")
    return names


def _explain(file: Path) -> None:
    """Raise the UserError that says what is wrong with `file`, if it is something we can name."""
    if not file.stat().st_size:
        raise UserError(f"{file} has no rows")
    if LOADERS[file.suffix] == "json":
        _explain_json(file)
    elif file.suffix == ".parquet":
        with open(file, "rb") as data:
            if data.read(4) != b"PAR1":
                raise UserError(f"{file} is not a Parquet file")


def _explain_json(file: Path) -> None:
    rows = list(_json_rows(file))
    if not any(row for _, row in rows):
        raise UserError(f"{file} has no rows")
    kinds: dict[str, tuple[str, str]] = {}  # field → (type, where it was first seen)
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{place}: a {type(row).__name__}, an object with fields is needed")
        for name, value in row.items():
            kind, first = kinds.setdefault(name, (type(value).__name__, place))
            if value is not None and kind not in (type(value).__name__, "NoneType"):
                raise UserError(
                    f"{place}: field '{name}' is a {type(value).__name__}, and a {kind} in {first}; mend one of them"
                )


def _json_rows(file: Path) -> Iterator[tuple[str, object]]:
    """(where it stands, row) of a list or of lines."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; convert the file") from None
    if text.lstrip().startswith("[") and file.suffix == ".json":
        try:
            yield from ((f"{file}, entry {number}", row) for number, row in enumerate(json.loads(text), 1))
        except ValueError as error:
            raise UserError(f"{file} is not valid JSON ({error}); mend the file") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{file}, line {number}", json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}, line {number}: not valid JSON ({error}); mend or remove the line") from None


def _reason(error: BaseException) -> str:
    """The first line of the innermost message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
