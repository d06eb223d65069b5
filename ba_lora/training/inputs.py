"""Hashes of the local files that a run reads, kept in run.json so that a matrix notices changed content at the same path.

resume.py compares the training inputs themselves and has to open the data and the model for that. This module needs neither,
nor PyTorch, so it compares a hundred finished runs in seconds. Hub ids, registry packages and generated data have no local files.
"""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ..folders import fast_hash
from ..tiny import MODEL_DIR
from .arguments import TrainArguments

DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt")
BASE_FILES = ("*.json", "*.safetensors", "*.gguf", "*.model", "*.txt")
BLOCK = 1 << 20  # bytes
BLOCKS = 64  # blocks read from a longer base file, spread over it; data files are read completely


def input_hashes(arguments: TrainArguments) -> dict[str, str | None]:
    """{"data", "base", "validation"}: a hash of the local files of each, or None if it has none."""
    data = _data_files(arguments.data_path or arguments.data, arguments.data, arguments.data_split, arguments.task)
    held_out = arguments.validation_data
    held_out = _data_files(held_out, held_out, arguments.validation_split, arguments.task)
    return {"data": _hash(data), "base": _base_hash(arguments.model), "validation": _hash(held_out)}


def measured_hashes(model: str, problems: Iterable[str]) -> dict[str, str]:
    """{model or problem set: hash of its local files} used to measure a run; omits those without local files."""
    found = {model: _base_hash(model)}
    for name in problems:
        place = Path(name) if os.path.exists(name) else Path(name.rpartition(":")[0] or name)
        files = sorted(place.rglob("*")) if os.path.isdir(place) and ":" in name else [place]
        found[name] = _hash([file for file in files if file.suffix in DATA_ENDINGS and os.path.isfile(file)])
    return {name: value for name, value in found.items() if value}


def _base_hash(model: str) -> str | None:
    base = MODEL_DIR if model == "tiny" else Path(model)
    return (
        _hash(sorted({file for pattern in BASE_FILES for file in base.glob(pattern)}), BLOCKS)
        if os.path.isdir(base)
        else None
    )


def inputs_changed(record: dict, arguments: TrainArguments) -> bool:
    """Return True if local files of a run have changed since `record`, its run.json, was written."""
    before = record.get("inputs") or {}
    if not any(before.values()):
        return False
    now = input_hashes(arguments)
    return any(before.get(name) and value and fast_hash.differ(before[name], value) for name, value in now.items())


def _data_files(name: str | None, data: str | None, split: str, task: str | None) -> list[Path]:
    """The file `name`. For a folder: the files whose names match the split, or all files if none do. data: names the part of it."""
    name, part = name or "", ""
    if name and not os.path.exists(name):
        name, _, part = name.rpartition(":")
    elif ":" in (data or ""):
        part = data.rpartition(":")[2]
    place = Path(name)
    if not name or os.path.isfile(place):
        return [place] if name else []
    for inner in filter(None, (part, task)):
        place = place / inner if os.path.isdir(place / inner) else place
    files = sorted(file for file in place.rglob("*") if file.suffix in DATA_ENDINGS and file.is_file())
    return [file for file in files if split in file.stem or split == file.parent.name] or files


def _hash(files: list[Path], blocks: int | None = None) -> str | None:
    if not files:
        return None
    total = fast_hash.new()
    for file in files:
        facts = file.stat()
        content = _hash_of(file.absolute(), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, blocks)
        total.update(f"{file.name} {facts.st_size} {content}".encode())
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _hash_of(file: Path, size: int, modified: int, changed: int, blocks: int | None) -> str:
    """Hash of a file; within a process it is read again only if its size or times change."""
    step = BLOCK if blocks is None else max(size // blocks, BLOCK)
    total = fast_hash.new()
    with open(file, "rb") as data:
        for start in range(0, size, step):
            data.seek(start)
            total.update(data.read(BLOCK))
    return total.hexdigest()
