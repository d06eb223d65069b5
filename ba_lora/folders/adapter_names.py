"""Checks of the tensor names of an adapter. Imports no large library, so that the card and its command stay fast."""

import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import RunFailure, UserError

WEIGHTS = "adapter_model.safetensors"
FACTOR = re.compile(r"(.+)\.lora_(A|B)\.weight")
HINT = "copy the adapter again, or name the base model that it was made for"


def check_header(folder: Path) -> None:
    """Refuse a PEFT adapter whose weights are cut off (RunFailure) or hold one factor of a pair without the other (UserError)."""
    file = folder / WEIGHTS
    if not file.is_file():
        return
    try:
        with safe_open(file, framework="np") as opened:
            names = list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise RunFailure(f"{file} cannot be read ({error}); copy the adapter again") from None
    check_pairs(names, file)


def check_pairs(names: Iterable[str], file: Path) -> None:
    """Raise UserError if one factor of a layer is present without the other."""
    names = set(names)
    for name in sorted(names):
        found = FACTOR.fullmatch(name)
        if found is None:
            continue
        layer, which = found.groups()
        other = f"{layer}.lora_{'B' if which == 'A' else 'A'}.weight"
        if other not in names:
            raise UserError(f"{file} lacks {other}; {HINT}")
