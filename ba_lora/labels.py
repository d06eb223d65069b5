"""What the outputs of a saved classifier are called, and how they are put in the order of a task.

A classifier's config says which class each output stands for. A task has its classes in an order of its own, which need not be
the same: outputs are matched by name. Names that only count (LABEL_0, LABEL_1, ... or 0, 1, ...) say nothing, so those outputs
are taken by position.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from .errors import UserError
from .files import read_json

logger = logging.getLogger(__name__)


def output_layer(model: nn.Module) -> tuple[str, nn.Linear]:
    """(name, layer) of the linear layer that gives a classifier's logits. UserError where there is none."""
    classes = model.config.num_labels
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no final linear layer of {classes} outputs, so it is not a classifier"
        )
    return layers[-1]


def check_names(folder: str | Path) -> None:
    """UserError where `folder` is a model folder whose config.json has an id2label that transformers cannot read."""
    file = Path(folder) / "config.json"
    try:
        known = read_json(file).get("id2label") if file.is_file() else None
    except (ValueError, AttributeError):
        return  # transformers says what is wrong with the file
    if known is not None and not (isinstance(known, dict) and all(number.isdecimal() for number in known)):
        raise UserError(f"{file}: id2label is {known!r}; it must give a name for the number of each output")


def saved_names(config, name: str) -> list[str] | None:
    """What the config of the model `name` calls its outputs, by number; None where the names only count.

    Raises UserError where id2label is no mapping of the numbers from 0 on, or where label2id says otherwise.
    """
    known = config.id2label or {}
    names = [str(known[number]) for number in sorted(known)]
    if sorted(known) != list(range(len(known))):
        raise UserError(f"model {name}: id2label of its config.json numbers {sorted(known)}, not 0 to {len(known) - 1}")
    if all(each.upper() in (f"LABEL_{number}", str(number)) for number, each in enumerate(names)):
        return None
    back = config.label2id or {}
    if len(set(names)) == len(names) and any(back.get(each, number) != number for number, each in enumerate(names)):
        raise UserError(
            f"model {name}: label2id of its config.json does not say what id2label says; correct one of them"
        )
    return names


def in_order_of(labels: Sequence[str], names: Sequence[str], name: str) -> list[int]:
    """The number of the saved output that each of `labels` is, by name: case, dashes and spaces do not count.

    Raises UserError where the names do not correspond one to one.
    """
    have, wanted = [_plain(each) for each in names], [_plain(each) for each in labels]
    if sorted(have) != sorted(wanted) or len(set(have)) < len(have):
        raise UserError(
            f"model {name} is a classifier that gives {', '.join(names)}, and the classes here are {', '.join(labels)}; "
            "correct id2label in its config.json, or give its pre-trained body"
        )
    return [have.index(each) for each in wanted]


@torch.no_grad()
def reorder_outputs(model: nn.Module, order: Sequence[int]) -> None:
    """Let output number i of a classifier be what its output number order[i] was."""
    layer = output_layer(model)[1]
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            parameter.copy_(parameter[list(order)].clone())


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip().casefold())
