"""Model and tokenizer by name: the embedded model ("tiny"), a folder, or a hub id."""

import logging
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .errors import UserError, choose
from .tiny import MODEL_DIR

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.gguf")


def locate(name: str) -> str:
    """What transformers should open for `name`: the embedded folder, an existing folder, or the hub id as it is.

    Raises UserError for a path without a model in it.
    """
    if name == "tiny":
        return str(MODEL_DIR)
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model folder {name} has no config.json; give a folder written by save_pretrained")
        if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
            raise UserError(f"model folder {name} has a config.json but no safetensors weights")
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model folder {name} does not exist")
    return name


def load_model(name: str, dtype: str = "float32"):
    """A causal language model in evaluation mode. `dtype`: float32, bfloat16, float16, or auto (as saved)."""
    place = locate(name)
    choose("dtype", dtype, DTYPES)
    try:
        return AutoModelForCausalLM.from_pretrained(place, dtype=DTYPES[dtype]).eval()
    except (OSError, ValueError) as error:
        raise _cannot_open("model", name, error) from None


def load_tokenizer(name: str):
    """The tokenizer that belongs to the model `name`."""
    place = locate(name)
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise _cannot_open("tokenizer", name, error) from None


def _cannot_open(what: str, name: str, error: Exception) -> UserError:
    if Path(name).is_dir() or name == "tiny":
        return UserError(f"the {what} in {name} cannot be opened: {str(error).strip().splitlines()[0]}")
    return UserError(
        f"{what} '{name}' is neither a folder nor 'tiny', and the hub did not give it (offline, or no such id); "
        "download it on a connected machine and give its folder"
    )
