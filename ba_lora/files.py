"""Files that are either complete or absent: written under a temporary name beside the target, then renamed."""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from .errors import DamagedFile, UserError

# Temporary names of atomic_write and atomic_folder: name, process id and, for folders, some letters.
LEFTOVER = re.compile(r"\.(?P<name>.+?)\.\d+(\.\w+)?\.(?P<end>tmp|old)")
CHECKSUM = "checksum"  # key of a sealed JSON file: checksum of all its other keys
PROJECT = Path(__file__).resolve().parents[1]  # configs/, results/ and scripts/ are here
RECORDS = ("run.json", "generation.json")
LAYOUT = "{\n"  # how the JSON files of this project begin


def of_the_project(name: str | Path) -> Path:
    """The path `name` in the current folder or, if it does not exist there, in the project's, as configs/nlg/tiny.yaml is."""
    place = Path(name)
    return place if place.exists() or not (PROJECT / place).exists() else PROJECT / place


def cache_home() -> Path:
    """$BA_LORA_CACHE, or ba-lora in the user's cache folder."""
    if os.environ.get("BA_LORA_CACHE"):
        return Path(os.environ["BA_LORA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ba-lora"


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator:
    """Open a text file (UTF-8) for writing; it appears at `path` only if the block ends without an exception."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike, own: Collection[str] = ()) -> Iterator[Path]:
    """Fill a temporary folder; it takes the place of `path` only if the block ends without an exception.

    own: names (patterns) that may be replaced in an existing `path`, which the caller knows to be this project's; everything else
    in it is kept. Without `own`, raises UserError if `path` is not empty. A link to a folder stays a link.
    """
    path = Path(os.path.realpath(path))
    _check_empty(path, own)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        old = temporary.with_suffix(".old")
        _check_empty(path, own)
        if path.exists():
            _carry_over(path, temporary, own)
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_empty(path: Path, own: Collection[str]) -> None:
    if not own and path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty, and nothing in it may be replaced; name another folder")


def _carry_over(old: Path, new: Path, own: Collection[str]) -> None:
    """Copy into `new` whatever in `old` matches none of the `own` names, unless `new` already has that name."""
    for entry in old.iterdir():
        if bears(entry.name, own) or (new / entry.name).exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def bears(name: str, patterns: Collection[str]) -> bool:
    """Return True if `name` matches one of `patterns`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def remove_own(folder: Path, names: Collection[str]) -> None:
    """Remove the entries of `folder` that match `names` (patterns), then the folder if it is empty. A file is itself removed.

    A link is removed, never followed.
    """
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    for entry in list(folder.iterdir()):
        if bears(entry.name, names):
            _remove(entry)
    if not any(folder.iterdir()):
        folder.rmdir()


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_leftovers(folder: Path, own: Collection[str]) -> None:
    """Remove what a killed process left in `folder` under the temporary name of a file or folder in `own`.

    If it was killed while it exchanged the old folder for the new one, the old one is restored.
    """
    for path in list(folder.glob(".*")):
        found = LEFTOVER.fullmatch(path.name)
        if not found or not bears(found["name"], own):
            continue
        if found["end"] == "old" and not (folder / found["name"]).exists():
            os.replace(path, folder / found["name"])
        else:
            _remove(path)


def write_json(path: str | os.PathLike, value) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | os.PathLike, *keys: str) -> dict:
    """Read a JSON object that has `keys`. A sealed object is checked against its checksum, which is not returned.

    A record (RECORDS) that another program rewrote in its own layout was changed on purpose and is not compared. Raises
    DamagedFile if the file is not such an object or was altered.
    """
    text = Path(path).read_bytes()
    rewritten = Path(path).name in RECORDS and not text.startswith(LAYOUT.encode())
    value = unsealed(text, str(path), compare=not rewritten)
    for key in keys:
        if key not in value:
            raise DamagedFile(f"{path} has no '{key}'; put it back from a copy or remove it")
    return value


def unsealed(text: bytes, place: str, *, compare: bool = True) -> dict:
    """The JSON object of `text`, without its checksum, which is compared if there is one. DamagedFile names `place`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is empty" if not text else str(error).partition("\n")[0]
        raise DamagedFile(f"{place} is not valid JSON ({reason}); put it back from a copy or remove it") from None
    if not isinstance(value, dict):
        raise DamagedFile(f"{place} holds no object; put it back from a copy or remove it")
    expected = value.pop(CHECKSUM, None)
    if expected is not None and compare and expected != _seal(value):
        raise DamagedFile(
            f'{place} was altered after it was written; put it back from a copy, or remove its line "{CHECKSUM}" if the change '
            "is your own"
        )
    return value


YamlLoader = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # libyaml's, which takes a tenth of the time, where PyYAML has it


def load_yaml(text: str):
    """`yaml.safe_load`, but a repeated key in a mapping is a YAMLError; safe_load would silently keep the last one."""
    loader = YamlLoader(text)
    document = loader.get_single_node()
    nodes, seen = [document], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(node, yaml.MappingNode | yaml.SequenceNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"'{key.value}' is there twice", problem_mark=key.start_mark
                )
            keys.add((key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key)))
            nodes.append(value)
    return None if document is None else loader.construct_document(document)


def write_sealed(path: str | os.PathLike, value: dict) -> None:
    """`write_json` with a checksum of the content, which `read_json` verifies."""
    write_json(path, sealed(value))


def sealed(value: dict) -> dict:
    """`value` with the checksum of its content as the last key."""
    return value | {CHECKSUM: _seal(value)}


def _seal(value: dict) -> str:
    """SHA-256 (hex) of `value` as it is read back: JSON has only text keys and no tuples."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def digest(value) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


_hashes: dict[tuple, str] = {}


def hash_of(path: str | os.PathLike) -> str:
    """`sha256` of a file. A process reads an unchanged file only once, under whatever path."""
    known = os.stat(path)
    key = (known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns)
    if key not in _hashes:
        _hashes[key] = sha256(Path(path))
    return _hashes[key]
