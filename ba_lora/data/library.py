"""Folders in the hub's layout, and data of the hub, opened by the `datasets` library. Importing it takes seconds.

A local copy of a hub folder gives the same rows as the hub does.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import DownloadManager, disable_progress_bars, load_dataset, load_dataset_builder
from datasets.data_files import DataFilesList, get_data_patterns
from datasets.exceptions import DatasetsError
from datasets.utils.logging import CRITICAL, get_verbosity, set_verbosity
from yaml import YAMLError

from ..errors import UserError, choose
from .readers import ENDINGS, LOADERS, read_files, reason_of, warn_of_missing_parts

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")  # `datasets` would read these, but convert some texts to dates
# Rejected even beside readable files.
UNREADABLE = (*COMPRESSED, ".tsv", ".arrow", *(ending.upper() for ending in LOADERS))
# StopIteration: a file without rows.
LOADER_ERRORS = (OSError, ValueError, TypeError, StopIteration, DatasetsError, YAMLError)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the loader's bars (the encoding has its own) and its messages, leaving only our one line."""
    before = get_verbosity()
    disable_progress_bars()
    set_verbosity(CRITICAL)
    try:
        yield
    finally:
        set_verbosity(before)


def open_folder(folder: Path, part: str, split: str) -> tuple:
    """A local folder in the hub's layout: its subfolder `part`, or the config `part` that its README names."""
    if part and not (folder / part).is_dir():
        return f"{folder}:{part}", *load_named(str(folder), part, split)
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


def load_named(name: str, part: str, split: str) -> tuple:
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
                f"data folder {name} has neither a folder nor a config '{part}' that opens ({reason_of(error)})"
            ) from None
        if isinstance(error, OSError):
            raise UserError(
                f"data '{whole}' is neither a file nor a folder here, and the hub did not give it (offline, or no such id); "
                "download it on a connected machine and give its file or folder (--data_path when training, --data when evaluating)"
            ) from None
        raise UserError(f"data '{whole}', split {split}, cannot be loaded from the hub: {reason_of(error)}") from None


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
