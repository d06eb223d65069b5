"""Checksums of the project's files, written with them and compared on reading, to detect damage and mix-ups.

    FOLDER/checksums.json   SHA-256 of each file in the folder: adapter/, model/, merged/, features/, a cache
                            (the embedded model's lies beside its folder, so that a copy is a model like any other)
    run.json "files"        SHA-256 of metrics.jsonl and of each checksums.json of a finished run, so that another run's is noticed
    a safetensors file      its metadata hold a checksum of the tensors, and what they belong to; see tensor_files.py

Files without checksums, from earlier versions or other software, open as before. A JSON file holds its own checksum; see files.py.
SHA-256 rather than a faster hash, because an evaluation records the SHA-256 of the weights anyway; a process reads each file once.
"""

import json
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from ..errors import DamagedFile, short
from ..files import REMEDY, hash_of, read_json, write_json, write_sealed
from . import fast_hash
from .kinds import SAVED

logger = logging.getLogger(__name__)

FILE = "checksums.json"
CARD = "README.md"  # may be rewritten at any time
WEIGHTS = "*.safetensors"
GENERATION_CONFIG = "generation_config.json"
OWN_CHANGE = f"if the change is your own, remove {FILE} from that folder"


def write(folder: str | Path, **facts: str) -> None:
    """Write FOLDER/checksums.json for every file in the folder except the card and hidden files. facts: further keys."""
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    listed = [name for name in files if name not in (FILE, CARD) and not Path(name).name.startswith(".")]
    write_json(folder / FILE, facts | {"files": {name: hash_of(files[name]) for name in listed}})


def add(folder: Path, saved: Iterable[str]) -> None:
    """List more files, by their paths, in FOLDER/checksums.json. What the user keeps in the folder stays unlisted."""
    known = read_json(folder / FILE)
    more = {Path(path).relative_to(folder).as_posix(): hash_of(path) for path in saved if Path(path).is_file()}
    write_json(folder / FILE, known | {"files": known["files"] | more})


def verify(
    folder: str | Path,
    remedy: str = f"put it back from a copy; {OWN_CHANGE}",
    *,
    listing: Path | None = None,
    editable: Collection[str] = (),
) -> None:
    """Compare a folder with its checksums.json, and that with the run.json of the run which the folder belongs to.

    listing: another file to use instead of FOLDER/checksums.json. editable: names of files whose change only gives a warning.
    Raises DamagedFile, with `remedy`, naming the first file that is missing, altered or not listed. Without a checksums.json
    nothing is compared; if the run recorded one, a warning says that it is gone.
    """
    folder = Path(folder)
    _check_run(folder, remedy)
    listing = listing or folder / FILE
    if not listing.is_file():
        return
    known = read_json(listing)
    if known and "files" not in known:
        return  # from other software
    files = known.get("files")
    if not isinstance(files, dict) or not files:
        raise DamagedFile(f"{listing} lists no files; {remedy}")
    for name, expected in files.items():
        _check_name(name, listing)
        path = folder / name
        if path.is_file() and hash_of(path) == expected:
            continue
        change = f"was altered after it was written (see {FILE})" if path.is_file() else "is missing"
        if name not in editable:
            raise DamagedFile(f"{path} {change}; {remedy}")
        logger.warning("%s %s; this is taken as your own change", path, change)
    for path in sorted(folder.glob(WEIGHTS)):
        if path.name not in files:
            raise DamagedFile(f"{path} is not one of the files in {FILE}; {remedy}")


def verify_model(folder: str | Path) -> None:
    """`verify` for a model that is about to be opened. A model outside a run may have a changed generation config, with a warning:
    people edit it, and no result here depends on it. An edit of config.json or of the tokenizer looks like damage, so it is refused
    until checksums.json is removed."""
    is_in_run = bool(_recorded(Path(folder).resolve().parent))
    verify(folder, editable=() if is_in_run else (GENERATION_CONFIG,))


def of_run(folder: str | Path) -> dict[str, str]:
    """{name in the run folder: SHA-256} of the results of a finished run, for "files" in its run.json."""
    folder = Path(folder)
    found = [folder / "metrics.jsonl", *sorted(folder.glob(f"*/{FILE}"))]
    return {path.relative_to(folder).as_posix(): hash_of(path) for path in found if path.is_file()}


def check_of_run(run: str | Path, name: str) -> None:
    """Raise DamagedFile if the file `name` of a run is missing or differs from run.json. Older runs recorded nothing."""
    expected = _recorded(Path(run)).get(name)
    if expected is None:
        return
    path = Path(run) / name
    if not path.is_file():
        raise DamagedFile(f"{path} is missing; put it back from a copy")
    if hash_of(path) != expected:
        raise DamagedFile(
            f"{path} does not belong to this run (it was altered or is another run's); put it back from a copy"
        )


def verify_run(run: str | Path) -> None:
    """`check_of_run` and `verify` for everything that run.json recorded."""
    for name in _recorded(Path(run)):
        check_of_run(run, name)
        if Path(name).name == FILE:
            verify((Path(run) / name).parent)


def weights_of_run(place: str | Path) -> str | None:
    """The hash that identifies a run's weights: what run.json recorded for adapter/ or model/; None if nothing. place: the run
    folder or one of these two."""
    run = Path(place).parent if Path(place).name in SAVED else Path(place)
    files = _recorded(run)
    return next((files[name] for name in (f"{saved}/{FILE}" for saved in SAVED) if name in files), None)


def check_weights(record: dict, run: str | Path, source: Path) -> None:
    """Raise DamagedFile if `record`, read from `source`, was made with other weights than those of `run`."""
    if record.get("weights") and record["weights"] != (weights_of_run(run) or record["weights"]):
        raise DamagedFile(
            f"{source} was made with other weights than those in {run}; evaluate this run again with --overwrite"
        )


def _check_name(name: str, listing: Path) -> None:
    """Raise DamagedFile unless `name` can be a file in the folder of `listing`."""
    if (
        not name.isprintable()
        or max(map(len, name.split("/"))) > 200
        or ".." in name.split("/")
        or name.startswith("/")
    ):
        raise DamagedFile(f"{listing} lists {short(name)}, which no file beside it can be called; {REMEDY}")


def _recorded(run: Path) -> dict[str, str]:
    files = read_json(run / "run.json").get("files") if (run / "run.json").is_file() else None
    return files if isinstance(files, dict) else {}


def _check_run(folder: Path, remedy: str) -> None:
    run, name = folder.resolve().parent, f"{folder.resolve().name}/{FILE}"
    expected = _recorded(run).get(name)
    if expected is None:
        return
    if not (folder / FILE).is_file():
        logger.warning("%s is missing, so %s cannot be checked", folder / FILE, folder)
    elif hash_of(folder / FILE) != expected:
        raise DamagedFile(
            f"{folder / FILE} does not belong to the run in {run} (it was altered, or the folder or run.json is another run's); {remedy}"
        )


# JSON files that belong to other files beside them


def write_record(path: Path, record: dict, beside: Iterable[str]) -> None:
    """Write a sealed JSON file with the hashes of the files `beside` it that exist."""
    files = {name: hash_of(path.with_name(name)) for name in beside if path.with_name(name).is_file()}
    write_sealed(path, record | {"files": files})


def read_record(path: str | Path, beside: Iterable[str] | None = None, keys: Iterable[str] = ()) -> dict:
    """`read_json`, then compare the files beside it that it lists: all, or those in `beside`. Raises DamagedFile naming the file
    that differs."""
    path = Path(path)
    record = read_json(path, *keys, kinds={"files?": "an object"})
    for name, expected in (record.get("files") or {}).items():
        _check_name(name, path)
        file = path.parent / name
        if beside is not None and name not in beside:
            continue
        if not file.is_file():
            raise DamagedFile(f"{file} is missing, but {path.name} belongs to it; put it back from a copy")
        if hash_of(file) != expected:
            raise DamagedFile(
                f"{file} and {path.name} do not belong together (one was altered or is another run's); put them back from a copy "
                "or make them again with --overwrite"
            )
    return record


# Lines of a growing file


def checked_line(record: dict, of: str = "") -> dict:
    """`record` with a checksum under "check". of: hash of what the line belongs to."""
    return record | {"check": _of_line(record, of)}


def check_line(record: dict, place: str, of: str = "") -> None:
    """Raise DamagedFile naming `place` if a line with a checksum was altered or belongs to something else."""
    rest = {name: value for name, value in record.items() if name != "check"}
    if "check" in record and fast_hash.differ(record["check"], _of_line(rest, of)):
        raise DamagedFile(f"{place} was altered after it was written, or is another run's; remove the line")


def _of_line(record: dict, of: str) -> str:
    return fast_hash.short((of + json.dumps(record, sort_keys=True)).encode())
