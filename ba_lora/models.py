"""Model and tokenizer by name: the embedded model ("tiny"), a folder, a hub id, or "package:NAME" from the registry."""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from . import packages
from .errors import UserError, choose
from .tiny import MODEL_DIR

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.gguf")


def locate(name: str) -> str:
    """What transformers should open for `name`: the embedded folder, a package's, an existing folder, or the hub id as it is.

    Raises UserError for a path without a model in it, and for a package that cannot be had.
    """
    if name == "tiny":
        return str(MODEL_DIR)
    if name.startswith(packages.PREFIX):
        return str(packages.open_model(name))
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


def load_model(
    name: str, dtype: str = "float32", *, attn_implementation: str | None = None, trust_remote_code: bool = False
):
    """A causal language model in evaluation mode.

    dtype: float32, bfloat16, float16, or auto (as saved). attn_implementation: one of ATTENTIONS; None is transformers' choice.
    trust_remote_code: run Python code that comes with the model. Raises UserError when it cannot be opened so, or when the
    files lack some of its weights.
    """
    choose("dtype", dtype, DTYPES)
    check_attention(attn_implementation, dtype)
    place = locate(name)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=DTYPES[dtype],
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise _cannot_open("model", name, error) from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"model {name} has no weights for {missing[0]} ({len(missing)} tensors are missing): it is no whole "
            f"{type(model).__name__}; give a causal language model"
        )
    if name == "tiny" or name.startswith(packages.PREFIX):
        # an exported adapter names its base so, not by a folder of this machine
        model.name_or_path = model.config._name_or_path = name
    return model.eval()


def load_tokenizer(name: str, *, trust_remote_code: bool = False):
    """The tokenizer that belongs to the model `name`."""
    place = locate(name)
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _cannot_open("tokenizer", name, error) from None


def check_attention(attn_implementation: str | None, dtype: str) -> None:
    """UserError when an attention implementation is unknown or cannot run here."""
    if attn_implementation is None:
        return
    if choose("attn_implementation", attn_implementation, ATTENTIONS) != "flash_attention_2":
        return
    remedy = "use sdpa"
    if not torch.cuda.is_available():
        raise UserError(f"--attn_implementation flash_attention_2 needs a GPU and there is none here; {remedy}")
    if importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            f"--attn_implementation flash_attention_2 needs the package flash-attn, which is not installed; install it or {remedy}"
        )
    if dtype == "float32":
        raise UserError(
            f"--attn_implementation flash_attention_2 works in bfloat16 and float16, not float32; change --dtype or {remedy}"
        )


def _cannot_open(what: str, name: str, error: Exception) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(
            f"the {what} of {name} needs Python code that its author ships with it, which would run on this machine; "
            "read it, and if you trust it add --trust_remote_code"
        )
    if Path(name).is_dir() or name == "tiny" or name.startswith(packages.PREFIX):
        return UserError(f"the {what} in {name} cannot be opened: {str(error).strip().splitlines()[0]}")
    return UserError(
        f"{what} '{name}' is neither a folder nor 'tiny', and the hub did not give it (offline, or no such id); "
        "download it on a connected machine and give its folder"
    )
