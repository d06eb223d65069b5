"""The sizes of a model by its name, and the rank and learning rate that suit them. Needs no large library and no weights.

A PiSSA start wants a lower rate in a wider model, and the paper's values are those of models of 7B parameters. `SUITED` has what
was chosen on validation data or published for each width; docs/start.md names the source of each row.
"""

import copy
import json
import math
import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, nearest
from ..files import PROJECT, read_json, read_yaml
from ..laboratory.names import parse
from ..tiny import MODEL_DIR

NUMBERS = PROJECT / "configs" / "models"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")  # keys of the width in a config.json


class Suited(NamedTuple):
    """Rank and learning rate of models whose width is below `below`."""

    below: float
    rank: int
    learning_rate: float


SUITED = (
    Suited(below=256, rank=16, learning_rate=4e-3),
    Suited(below=512, rank=16, learning_rate=1e-3),
    Suited(below=1024, rank=16, learning_rate=5e-4),
    Suited(below=2048, rank=32, learning_rate=2e-4),
    Suited(below=3072, rank=64, learning_rate=5e-5),
    Suited(below=float("inf"), rank=128, learning_rate=2e-5),
)
PAPER = SUITED[-1]
CLASSIFIER_RANK = 8  # the paper's for GLUE, at every width
SHARE = 8  # a rank is at most this part of the width


def suited(model: str, is_classifier: bool) -> tuple[int, float, str]:
    """(rank, learning rate, the reason in words) that suit the base model `model`: the paper's if its width is not known."""
    width = width_of(model)
    row = PAPER if width is None else next(row for row in SUITED if width < row.below)
    rank = CLASSIFIER_RANK if is_classifier else row.rank
    if width is None:
        return rank, row.learning_rate, f"the paper's for 7B, since the width of {model} is not known"
    return min(rank, max(width // SHARE, 1)), row.learning_rate, f"for a model of width {width}"


def fill_in(arguments) -> None:
    """Set the rank and the learning rate of `arguments` (TrainArguments) that were not given: those of the run that --resume
    continues, else by the model. `arguments.chosen` then names those set by the model; it is "" if there are none."""
    arguments.chosen = ""
    names = [name for name in ("rank", "learning_rate") if getattr(arguments, name) is None]
    record = Path(arguments.output_dir or "") / "run.json"
    if names and arguments.resume and arguments.output_dir and record.is_file():
        kinds = {"config": "an object", "config.rank?": "a whole number", "config.learning_rate?": "a number"}
        recorded = read_json(record, "config", kinds=kinds)["config"]
        for name in names:
            setattr(arguments, name, recorded.get(name))
        names = [name for name in names if getattr(arguments, name) is None]
    if not names:
        return
    rank, rate, why = suited(arguments.model, bool(arguments.task))
    values = {"rank": rank, "learning_rate": rate}
    for name in names:
        setattr(arguments, name, values[name])
    given = " ".join(f"--{name} {values[name]:g}" for name in names)
    arguments.chosen = f"chosen: {given}, {why} (docs/start.md)"


def width_of(model: str) -> int | None:
    """The hidden width of a model: from its config.json, a file in configs/models, or the hub's cache; None if it is not known."""
    try:
        numbers = read_numbers(model)[0]
    except UserError:
        numbers = _from_hub(model)
    parts = [part for part in (numbers, numbers.get("text_config")) if isinstance(part, dict)]
    found = (part.get(key) for part in parts for key in WIDTHS)
    return next((width for width in found if isinstance(width, int) and width > 0), None)


def _from_hub(model: str) -> dict:
    """config.json of a hub id that the hub's cache holds; {} otherwise."""
    folder = cached_folder(model)
    try:
        numbers = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return numbers if isinstance(numbers, dict) else {}


def cached_folder(model: str) -> Path | None:
    """The folder in which the hub's cache holds config.json of a hub id, and perhaps its weights; None if it has none."""
    if not HUB_ID.fullmatch(model):
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, "config.json")
    except ValueError:  # a name that no repository can have
        return None
    return Path(found).parent if isinstance(found, str) else None


def parameters_of(model: str) -> int | None:
    """The parameters of a model: counted in its weight files here, else as configs/models says; None if neither is here.

    Packed 4-bit weights count as the bytes they are, so a quantised model counts as a smaller one.
    """
    folder = Path(model) if os.path.isdir(model) else cached_folder(model)
    files = sorted(folder.glob("*.safetensors")) if folder else []
    if not files:
        return _described_as(model).get("parameters")
    from safetensors import SafetensorError, safe_open

    total = 0
    try:
        for file in files:
            with safe_open(file, framework="numpy") as opened:
                total += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return None  # opening the model names the file
    return total


def fetch_config(model: str) -> bool:
    """Put config.json of a hub id into the hub's cache. Return False if the hub does not give it: opening the model says why."""
    if not HUB_ID.fullmatch(model) or os.path.exists(model):
        return False
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(model, "config.json")
    except (OSError, ValueError):  # the hub's own errors are OSErrors
        return False
    return True


def read_numbers(name: str) -> tuple[dict, str]:
    """(sizes of an architecture as arguments of AutoConfig.for_model, their source).

    name: 'tiny', a folder with a config.json, or the name, `hub` or `package` of a file in configs/models.
    Raises UserError if there are none.
    """
    is_tiny = name == "tiny" or parse(name) is not None  # a twin has the same sizes
    folder = MODEL_DIR if is_tiny else Path(name)
    if os.path.isfile(folder / "config.json"):  # False for what no path can be, such as a name of 300 letters
        source = "the embedded model" if is_tiny else f"{name}/config.json"
        return read_json(folder / "config.json", remedy="give a folder written by save_pretrained"), source
    if described := _described_as(name):
        return copy.deepcopy(described["numbers"]), f"configs/models/{described['file']}"
    known = [each for described in _described() for each in _names(described)]
    raise UserError(
        f"no numbers of the model '{name}' are here{nearest(name, known)}; give a folder that holds its config.json, "
        "or describe it in configs/models"
    )


@cache
def _described() -> list[dict]:
    """The content of every file in configs/models, with the file's name."""
    return [read_yaml(file) | {"file": file.name} for file in sorted(NUMBERS.glob("*.yaml"))]


def _names(described: dict) -> set[str]:
    """The names of a model in configs/models: its file's, its hub id, its package."""
    return {Path(described["file"]).stem, described["hub"], described.get("package", described["hub"])}


def _described_as(model: str) -> dict:
    """The content of the file in configs/models that has the name `model`; {} if there is none."""
    lower = model.lower()
    return next((each for each in _described() if lower in {name.lower() for name in _names(each)}), {})
