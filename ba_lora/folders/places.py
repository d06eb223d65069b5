"""Names of models that may be paths: what the disk shows to be wrong with one. Needs no large library."""

import os
from pathlib import Path

from ..errors import UserError, shortened
from .kinds import saved_in

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.gguf")
# Files that identify a folder with trained weights: PEFT's adapters, our own.
ADAPTERS = ("adapter_config.json", "ba_lora.json")
PACKAGE, TWIN = "package:", "twin:"  # prefixes of models that are fetched or made on first use
TASK_FILE = "task.json"  # beside a classifier's weights: its task, labels and data


def is_named(name: str) -> bool:
    """Return True for the embedded model, a model package or a twin: models with a name that is no path and no hub id."""
    return name == "tiny" or name.startswith((PACKAGE, TWIN))


def is_path(name: str) -> bool:
    """Return True if `name`, which need not exist, is a path and no hub id (OWNER/NAME).

    A name in a folder that exists here is a path, and so is every name in runs/, where run folders go by default.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return True
    return "/" in name and (name.startswith("runs/") or os.path.isdir(Path(name).parent))


def check_model_folder(name: str) -> None:
    """Raise UserError for a path without a model in it. A name that may be a hub id is accepted."""
    folder = Path(name)
    if not os.path.isdir(folder):  # False for what no path can be, such as a name of 300 letters
        return refuse_missing(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {name} has no config.json; give a folder written by save_pretrained")
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
        raise UserError(f"model folder {name} has a config.json but no safetensors weights")


def check_trained(name: str, option: str) -> None:
    """Raise UserError for a path without a text model in it: of a run, an adapter, or a whole one. A hub id is accepted."""
    folder = saved = Path(name)
    if not os.path.isdir(folder):
        return refuse_missing(name, f"{option} {shortened(name)}")
    if any((folder / file).is_file() for file in ADAPTERS):
        pass
    elif (folder / "run.json").is_file():
        saved = saved_in(folder)
    elif not (folder / "config.json").is_file():
        raise UserError(
            f"{option} {name} is not a run folder (run.json), adapter folder (adapter_config.json) or model folder (config.json)"
        )
    refuse_classifier(saved, name)


def refuse_classifier(saved: str | Path, name: str) -> None:
    """Raise UserError if the folder `saved`, which belongs to the run or model `name`, holds a classifier."""
    if (Path(saved) / TASK_FILE).is_file():
        raise UserError(f"{name} is a classifier, which writes no text; evaluate it with python -m eval.glue")


def refuse_missing(name: str, shown: str = "") -> None:
    """Raise UserError if `name` is a path that is not there. shown: how the message begins."""
    shown = shown or f"model folder {shortened(name)}"
    if os.path.isfile(name):
        raise UserError(f"{shown} is a file; name the folder that it lies in")
    if is_path(name):
        raise UserError(f"{shown} does not exist; give a folder that does, or a hub id (OWNER/NAME)")
