"""The project's own safetensors files, each with a checksum of its tensors and a note of what it belongs to."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DamagedFile
from . import fast_hash


def save_tensors(tensors: Mapping[str, Tensor], file: Path, of: str = "") -> None:
    """Write a safetensors file with a checksum. of: the name or hash of what it belongs to."""
    # one entry, because the order of several varies
    save_file(dict(tensors), file, metadata={"checksum": f"{_of_tensors(tensors)} {of}"})


def load_tensors(file: str | Path, of: str = "") -> dict[str, Tensor]:
    """The tensors of a file. If it has a checksum, the checksum and what the file belongs to (`of`) are verified.

    Raises DamagedFile; its message says what is wrong but gives no remedy.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
            checksum, _, known = (opened.metadata() or {}).get("checksum", "").partition(" ")
    except (OSError, SafetensorError) as error:
        raise DamagedFile(f"{file} cannot be read ({error})") from None
    if checksum and fast_hash.differ(checksum, _of_tensors(tensors)):
        raise DamagedFile(f"{file} was altered after it was written")
    if checksum and known != of:
        raise DamagedFile(f"{file} belongs to something else ({known[:12] or 'a start'}, not {of[:12] or 'a start'})")
    return tensors


def of_tensors(file: str | Path) -> str | None:
    """The `of` that a file records; None if it cannot be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            return (opened.metadata() or {}).get("checksum", "").partition(" ")[2]
    except (OSError, SafetensorError):
        return None


def _of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A 128-bit hash of names, types, shapes and values."""
    state = fast_hash.new()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
