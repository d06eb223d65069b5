"""Files that are either complete or absent: written under a temporary name beside the target, then renamed."""

import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from .errors import DamagedFile, UserError, short

# Temporary names of atomic_write and atomic_folder: name, process id and, for folders, some letters.
LEFTOVER = re.compile(r"\.(?P<name>.+?)\.\d+(\.\w+)?\.(?P<end>tmp|old)")
CHECKSUM = "checksum"  # key of a sealed JSON file: checksum of all its other keys
IMPORTS = Path(__file__).resolve().parents[1]  # the folder from which Python imports ba_lora
# configs/ is here, and in a checkout also eval/, results/ and scripts/. An installed package carries configs/ inside (setup.py).
PROJECT = IMPORTS / "ba_lora" if (IMPORTS / "ba_lora" / "configs").is_dir() else IMPORTS
CHECKOUT = (PROJECT / "pyproject.toml").is_file()  # False for an installed package
RECORDS = ("run.json", "generation.json", "likelihood.json")
LAYOUT = "{\n"  # how the JSON files of this project begin
REMEDY = "put it back from a copy or remove it"


def of_the_project(name: str | Path) -> Path:
    """The path `name` in the current folder or, if it does not exist there, in the project's, as configs/nlg/tiny.yaml is."""
    place = Path(name)
    return place if place.exists() or not (PROJECT / place).exists() else PROJECT / place


def with_extra(name: str) -> str:
    """The command that installs the packages of an extra of pyproject.toml."""
    return "pip install -r requirements.txt" if CHECKOUT else f"pip install 'ba-lora[{name}]'"


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


def read_json(
    path: str | os.PathLike, *keys: str, kinds: Mapping[str, str] | None = None, remedy: str = REMEDY
) -> dict:
    """Read a JSON object that has `keys`, and values of `kinds` (see `check_kinds`). A sealed object is checked against its
    checksum, which is not returned.

    A record (RECORDS) that another program rewrote in its own layout was changed on purpose and is not compared. Raises
    DamagedFile, with `remedy`, if the file cannot be read, is not such an object, or was altered.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror or error}); {remedy}") from None
    rewritten = Path(path).name in RECORDS and not text.startswith(LAYOUT.encode())
    value = unsealed(text, str(path), compare=not rewritten, remedy=remedy)
    for key in keys:
        if key not in value:
            raise DamagedFile(f"{path} has no '{key}'; {remedy}")
    check_kinds(value, str(path), kinds or {}, remedy)
    return value


def unsealed(text: bytes, place: str, *, compare: bool = True, remedy: str = REMEDY) -> dict:
    """The JSON object of `text`, without its checksum, which is compared if there is one. DamagedFile names `place`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{place} is not valid JSON ({json_reason(error, text)}); {remedy}") from None
    if not isinstance(value, dict):
        raise DamagedFile(f"{place} holds no object; {remedy}")
    expected = value.pop(CHECKSUM, None)
    if expected is not None and compare and expected != _seal(value):
        raise DamagedFile(
            f'{place} was altered after it was written; put it back from a copy, or remove its line "{CHECKSUM}" if the change '
            "is your own"
        )
    return value


def read_json_lines(
    path: str | os.PathLike, kinds: Mapping[str, str] | None = None, remedy: str = "put the file back from a copy"
) -> list[dict]:
    """Read a file of one JSON object per line, with values of `kinds` (see `check_kinds`).

    Raises DamagedFile, with `remedy`, naming the file and the line that is not such an object.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror or error}); {remedy}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(unsealed(line, f"{path}, line {number}", remedy=remedy))
            check_kinds(rows[-1], f"{path}, line {number}", kinds or {}, remedy)
    return rows


def parse_json(text: str, place: str, *, strict: bool = False, remedy: str = "fix or remove the line"):
    """The value of one JSON text. strict: refuse NaN, infinities, and a name that is there twice in one object.

    Raises UserError, with `remedy` and beginning with `place`, if the text is not JSON or cannot be represented.
    """
    try:
        return STRICT.decode(text) if strict else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not valid JSON ({json_reason(error, text)}); {remedy}") from None


def _object(pairs: list[tuple]) -> dict:
    made = {sys.intern(name): value for name, value in pairs}
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {short(twice)} appears twice in one object")
    return made


def _constant(name: str):
    raise ValueError(f"{name} is not a JSON number; write null")


STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def json_reason(error: Exception, text: str | bytes | None = None) -> str:
    """Why a JSON text cannot be read, from the exception that reading it raised."""
    if text is not None and not text.strip():
        return "it is empty"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at " + (f"line {error.lineno}, " if error.lineno > 1 else "") + f"column {error.colno}"
    if "integer string conversion" in str(error):
        return f"a whole number of more than {sys.get_int_max_str_digits()} digits; write it as a text"
    return str(error)


def name_of(kind: type) -> str:
    """The name of a JSON type in messages."""
    return "null" if kind is type(None) else kind.__name__


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


KINDS = {  # kind of a value, as messages call it → test
    "a text": lambda value: isinstance(value, str),
    "a text or a number": lambda value: isinstance(value, str) or _is_number(value),
    "a number": _is_number,
    "a whole number": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "true or false": lambda value: isinstance(value, bool),
    "an object": lambda value: isinstance(value, dict),
    "an object of numbers": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "a list": lambda value: isinstance(value, list),
    "a list of objects": lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value),
    "a list of texts": lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
}


def check_kinds(record: dict, place: str, kinds: Mapping[str, str], remedy: str = REMEDY) -> None:
    """Check the values of a JSON object that was read from `place`.

    kinds: name → a key of KINDS, such as "a number". "a.b" is the value b of the object a. After the name, "?" allows the value
    to be absent or null. Raises DamagedFile, with `remedy`, naming the place, the value and the kind that is needed.
    """
    for name, kind in kinds.items():
        value, path = record, name.rstrip("?").split(".")
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if value is None and name.endswith("?"):
            continue
        if value is None and path[-1] not in record:
            raise DamagedFile(f"{place} has no '{name.rstrip('?')}'; {remedy}")
        if not KINDS[kind](value):
            raise DamagedFile(f"{place}: '{name.rstrip('?')}' is {short(value)}, {kind} is needed; {remedy}")


# libyaml's, which takes a tenth of the time, where PyYAML has it
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 100  # levels of nesting in a YAML file, far below what ends the process


def read_yaml(path: str | os.PathLike, loader: type = YamlLoader):
    """The value of a YAML file; None if it has none. Raises UserError, in one line with the place, if it cannot be read."""
    try:
        return load_yaml(Path(path).read_text(encoding="utf-8-sig"), loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; convert the file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}; fix the file") from None
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: nested too deeply; fix the file") from None
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:  # of values: the 45th of May
        raise UserError(
            f"{path} holds a value that YAML cannot read ({json_reason(error)}); put it in quotes"
        ) from None


def load_yaml(text: str, loader: type = YamlLoader):
    """`yaml.safe_load`, but a repeated key in a mapping is a YAMLError; safe_load would silently keep the last one."""
    _check_nesting(text, loader)
    loader = loader(text)
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


def _check_nesting(text: str, loader: type) -> None:
    """Raise a YAMLError for a document that is nested too deeply or contains itself."""
    anchors = []  # of the collections that are open
    for event in yaml.parse(text, Loader=loader):
        problem = None
        if isinstance(event, yaml.CollectionEndEvent):
            anchors.pop()
        elif isinstance(event, yaml.CollectionStartEvent):
            anchors.append(event.anchor)
            problem = f"nested more than {DEEPEST} deep" if len(anchors) > DEEPEST else None
        elif isinstance(event, yaml.AliasEvent) and event.anchor in anchors:
            problem = f"'{event.anchor}' contains itself"
        if problem:
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=event.start_mark)


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
