"""Rows of a data source: a local file or folder (`readers`), the hub (the `datasets` library), or the generator.

A name is a path, a hub id, a hub id with a subfolder or config ("fxmeng/pissa-dataset:metamath", "openai/gsm8k:main"), or
"tinymath:SPLIT[:SEED]". A local copy of a hub folder gives the same rows as the hub does.
"""

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from datasets import Dataset, DownloadManager, disable_progress_bars, load_dataset, load_dataset_builder
from datasets.data_files import DataFilesList, get_data_patterns
from datasets.exceptions import DatasetsError
from datasets.utils.logging import CRITICAL, get_verbosity, set_verbosity
from yaml import YAMLError

from ..errors import UserError, choose
from .readers import ENDINGS, LOADERS, read_files, warn_of_missing_parts
from .tinymath import SPLITS, generate

TINYMATH_ROWS = 4000  # rows of a generated split, unless a limit is given
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")  # `datasets` would read these, but convert some texts to dates
# Rejected even beside readable files.
UNREADABLE = (*COMPRESSED, ".tsv", ".arrow", *(ending.upper() for ending in LOADERS))
# StopIteration: a file without rows.
LOADER_ERRORS = (OSError, ValueError, TypeError, StopIteration, DatasetsError, YAMLError)


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
    if data.startswith("tinymath:") and not path:
        records = tinymath_rows(data, limit or TINYMATH_ROWS)
        source, columns = data, list(records[0])
    else:
        with _quiet_loader():
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
        raise UserError(f"{source} cannot be read: {_reason(error)}") from None
    return Table(source, columns, [(number + 1, row) for number, row in zip(numbers, chosen, strict=True)])


def _choose(records, numbers: list[int]) -> list[dict]:
    """The rows with these numbers (from 0) of a list, an Arrow table or a Dataset, without fields that are null."""
    if isinstance(records, list):
        return [records[number] for number in numbers]
    if isinstance(records, Dataset):
        rows = records.select(numbers).to_list()
    elif numbers == list(range(len(numbers))):
        rows = records.slice(0, len(numbers)).to_pylist()
    else:
        rows = records.take(numbers).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def tinymath_rows(data: str, count: int) -> list[dict]:
    """`count` generated problems of "tinymath:SPLIT[:SEED]". Raises UserError for an unknown split or an invalid seed."""
    split, _, seed = data.removeprefix("tinymath:").partition(":")
    choose("tinymath split", split, SPLITS)
    if seed and not seed.isdigit():
        raise UserError(f"--data {data}: the seed '{seed}' is not an integer; write tinymath:{split}:0")
    return generate(split, count, seed=int(seed or 0))


@contextmanager
def _quiet_loader() -> Iterator[None]:
    """Suppress the loader's bars (the encoding has its own) and its messages, leaving only our one line."""
    before = get_verbosity()
    disable_progress_bars()
    set_verbosity(CRITICAL)
    try:
        yield
    finally:
        set_verbosity(before)


def _open(data: str, path: str | None, split: str) -> tuple:
    """(its name in errors, its columns, its rows) of the source that `data` and `path` name."""
    name, part = data, ""
    if not Path(data).exists() and ":" in data:
        name, _, part = data.rpartition(":")
    place = Path(path or name)
    if place.is_file():
        return str(place), *read_files([place])
    if place.is_dir():
        return _open_folder(place, part, split)
    if path or place.suffix in LOADERS or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"data file {place} does not exist; give the path of a file ({ENDINGS}) or a folder, or a hub id (OWNER/NAME)"
        )
    return data, *_load_named(name, part, split)


def _open_folder(folder: Path, part: str, split: str) -> tuple:
    """A local folder in the hub's layout: its subfolder `part`, or the config `part` that its README names."""
    if part and not (folder / part).is_dir():
        return f"{folder}:{part}", *_load_named(str(folder), part, split)
    folder = folder / part
    try:
        patterns = get_data_patterns(str(folder))
    except FileNotFoundError:
        raise UserError(f"data folder {folder} holds no data files ({ENDINGS})") from None
    choose(f"split of {folder},", split, [str(known) for known in patterns])
    found = DataFilesList.from_patterns(patterns[split], base_path=str(folder.resolve()))
    _check_readable(map(Path, found), str(folder), UNREADABLE)
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
    warn_of_missing_parts(files)
    return str(folder), *read_files(files)


def _check_readable(files: Iterable[Path], folder: str, unreadable: Collection[str]) -> None:
    """Raise UserError if a file has one of the endings `unreadable`: its rows would be missing."""
    if found := sorted(file.name for file in files if file.suffix in unreadable):
        raise UserError(
            f"data folder {folder} holds {', '.join(found[:5])}, which cannot be read ({ENDINGS} can); unpack, convert or "
            "remove it"
        )


def _load_named(name: str, part: str, split: str) -> tuple:
    """A hub id, or a folder with a README: `part` is one of its configs, else one of its folders."""
    whole = f"{name}:{part}" if part else name
    try:
        if found := _read_named(name, part, split):
            return found
        if Path(name).is_dir():  # the library's cache is keyed by path and time, and would return old rows
            with TemporaryDirectory(prefix="ba-lora-data-") as fresh:
                options = {"cache_dir": fresh, "keep_in_memory": True}
                dataset = _by_config_or_folder(load_dataset, name, part, split=split, **options)
        else:
            dataset = _by_config_or_folder(load_dataset, name, part, split=split)
        return dataset.column_names, dataset
    except LOADER_ERRORS as error:
        if Path(name).is_dir():
            raise UserError(
                f"data folder {name} has neither a folder nor a config '{part}' that opens ({_reason(error)})"
            ) from None
        if isinstance(error, OSError):
            raise UserError(
                f"data '{whole}' is neither a file nor a folder here, and the hub did not give it (offline, or no such id); "
                "download it on a connected machine and give its file or folder (--data_path when training, --data when evaluating)"
            ) from None
        raise UserError(f"data '{whole}', split {split}, cannot be loaded from the hub: {_reason(error)}") from None


def _by_config_or_folder(load: Callable, name: str, part: str, **options):
    """The result of `load` for a data set; `part` is a config, else a folder."""
    try:
        return load(name, part or None, **options)
    except ValueError as error:
        if not part or "BuilderConfig" not in str(error):
            raise
        return load(name, data_dir=part, **options)


def _read_named(name: str, part: str, split: str) -> tuple | None:
    """(column names, rows) of a split, read by `readers`, because `datasets` converts dates and lets the columns of a CSV
    shift. None if `datasets` is needed: for Parquet on the hub, and for its own formats and options."""
    try:
        builder = _by_config_or_folder(load_dataset_builder, name, part)
    except (*LOADER_ERRORS, RuntimeError):  # load_dataset will report the same error
        return None
    names = [str(file) for file in (builder.config.data_files or {}).get(split, ())]
    local = Path(name).is_dir()
    if local:
        _check_readable(map(Path, names), name, COMPRESSED)
    kinds = {"csv" if file.endswith(".tsv") else LOADERS.get(Path(file).suffix) for file in names}
    if len(kinds) != 1 or None in kinds or (kinds == {"parquet"} and not local):
        return None
    if options := _options_set(builder.config):
        if local:
            raise UserError(
                f"data folder {name}: its config '{part}' sets {', '.join(options)}, which is not supported; convert the files "
                f"({ENDINGS}) and leave it out"
            )
        return None
    files = [Path(file) for file in DownloadManager().download(names)]  # local files stay where they are
    if not all(file.suffix in (*LOADERS, ".tsv") for file in files):
        return None
    return read_files(files, getattr(builder.config, "sep", ","))


def _options_set(config) -> list[str]:
    """The options of a CSV or JSON config that change the meaning of a file, except the separator."""
    usual = type(config)()
    passed = ("name", "version", "description", "data_dir", "data_files", "features", "sep", "delimiter", "chunksize")
    changed = (field.name for field in fields(config) if getattr(config, field.name) != getattr(usual, field.name))
    return [name for name in changed if name not in passed]


def _reason(error: BaseException) -> str:
    """The first line of the innermost message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
