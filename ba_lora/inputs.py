"""The local files that a run reads, as hashes in run.json, so that a matrix notices other content at the same path.

resume.py compares what training sees, for which it opens the data and the model. This needs neither, nor PyTorch: a list of
a hundred finished runs is compared in seconds. A hub id, a registry package and generated data have no files to compare.
"""

from functools import lru_cache
from pathlib import Path

import xxhash

from .arguments import TrainArguments
from .tiny import MODEL_DIR

DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt")
BASE_FILES = ("*.json", "*.safetensors", "*.gguf", "*.model", "*.txt")
BLOCK = 1 << 20  # bytes
BLOCKS = 64  # of a longer file of the base, spread over it; data are read whole


def input_hashes(arguments: TrainArguments) -> dict[str, str | None]:
    """{"data", "base"}: hashes of the files of each, None where there are none here."""
    base = MODEL_DIR if arguments.model == "tiny" else Path(arguments.model)
    files = sorted({file for pattern in BASE_FILES for file in base.glob(pattern)}) if base.is_dir() else []
    return {"data": _hash(_data_files(arguments)), "base": _hash(files, BLOCKS)}


def inputs_changed(record: dict, arguments: TrainArguments) -> bool:
    """Whether the files of a run are here with other content than `record`, its run.json, says."""
    before = record.get("inputs") or {}
    if not any(before.values()):
        return False
    now = input_hashes(arguments)
    return any(before.get(name) and value and before[name] != value for name, value in now.items())


def _data_files(arguments: TrainArguments) -> list[Path]:
    """The file, or the files of the run's split where their names tell it, else all of the folder."""
    name, part = arguments.data_path or arguments.data or "", ""
    if name and not Path(name).exists():
        name, _, part = name.rpartition(":")
    elif ":" in (arguments.data or ""):
        part = arguments.data.rpartition(":")[2]
    place = Path(name)
    if not name or place.is_file():
        return [place] if name else []
    for inner in filter(None, (part, arguments.task)):
        place = place / inner if (place / inner).is_dir() else place
    files = sorted(file for file in place.rglob("*") if file.suffix in DATA_ENDINGS and file.is_file())
    split = arguments.data_split
    return [file for file in files if split in file.stem or split == file.parent.name] or files


def _hash(files: list[Path], blocks: int | None = None) -> str | None:
    if not files:
        return None
    total = xxhash.xxh3_128()
    for file in files:
        facts = file.stat()
        content = _hash_of(file.absolute(), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, blocks)
        total.update(f"{file.name} {facts.st_size} {content}".encode())
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _hash_of(file: Path, size: int, modified: int, changed: int, blocks: int | None) -> str:
    """Hash of a file, read once by a process as long as its size and times of change stay."""
    step = BLOCK if blocks is None else max(size // blocks, BLOCK)
    total = xxhash.xxh3_128()
    with open(file, "rb") as data:
        for start in range(0, size, step):
            data.seek(start)
            total.update(data.read(BLOCK))
    return total.hexdigest()
