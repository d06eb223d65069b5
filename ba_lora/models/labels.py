"""The names of a saved classifier's outputs, and how to put the outputs in the order of a task.

A classifier's config says which class each output stands for. A task has its own order of classes, which may differ, so
outputs are matched by name. Names that are only numbers (LABEL_0, LABEL_1, ... or 0, 1, ...) carry no meaning, so those
outputs are matched by position.
"""

import logging
import re
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UserError

logger = logging.getLogger(__name__)


def output_layer(model: nn.Module) -> tuple[str, nn.Linear]:
    """(name, layer) of the linear layer that gives a classifier's logits. UserError if there is none."""
    classes = model.config.num_labels
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no final linear layer of {classes} outputs, so it is not a classifier"
        )
    return layers[-1]


def check_names(config: dict, name: str) -> None:
    """UserError if config.json of the model `name` has an id2label that transformers cannot read."""
    known = config.get("id2label")
    if known is not None and not (isinstance(known, dict) and all(number.isdecimal() for number in known)):
        raise UserError(
            f"model {name}: id2label of its config.json is {known!r}; it must give a name for the number of each output"
        )


def saved_names(config: dict, name: str) -> list[str] | None:
    """The output names in config.json of the model `name`, by number; None if it gives no names at all.

    They come from id2label. If that is missing or has only numbers, they come from label2id, which transformers then
    ignores. Raises UserError if id2label does not number the outputs from 0 on, label2id gives no numbers, or the two
    contradict each other.
    """
    known = {int(number): str(each) for number, each in (config.get("id2label") or {}).items()}
    back = config.get("label2id") or {}
    if not (isinstance(back, dict) and all(str(number).isdecimal() for number in back.values())):
        raise UserError(f"model {name}: label2id of its config.json is {back!r}; it must give a number for each name")
    back = {each: int(number) for each, number in back.items()}
    names = [known[number] for number in sorted(known)]
    if sorted(known) != list(range(len(known))):
        raise UserError(f"model {name}: id2label of its config.json numbers {sorted(known)}, not 0 to {len(known) - 1}")
    if _only_count(names):
        others = sorted(back, key=back.get)
        if _only_count(others):
            return names or None
        fits = sorted(back.values()) == list(range(len(names or back)))
        names = others
    else:
        fits = len(set(names)) < len(names) or all(back.get(each, n) == n for n, each in enumerate(names))
    if not fits:
        raise UserError(
            f"model {name}: label2id and id2label of its config.json contradict each other; correct one of them"
        )
    return names


def in_order_of(labels: Sequence[str], names: Sequence[str], name: str) -> list[int]:
    """For each of `labels`, the number of the saved output with that name. Case, dashes and spaces count only if names would
    be equal without them. Names that are only numbers are matched by position, unless `labels` are the same names.

    Raises UserError if the names do not correspond one to one.
    """
    for plain in (str, _plain):
        have, wanted = [plain(each) for each in names], [plain(each) for each in labels]
        if sorted(have) == sorted(wanted) and len(set(have)) == len(have):
            return [have.index(each) for each in wanted]
    if _only_count(names) and len(names) == len(labels):
        return list(range(len(names)))
    raise UserError(
        f"model {name} is a classifier that gives {', '.join(names)}, and the classes here are {', '.join(labels)}; "
        "correct id2label in its config.json, or give its pre-trained body"
    )


def _only_count(names: Sequence[str]) -> bool:
    """Return True if names are only numbers: LABEL_0, LABEL_1, ... or 0, 1, ..."""
    return all(each.upper() in (f"LABEL_{number}", str(number)) for number, each in enumerate(names))


@torch.no_grad()
def reorder_outputs(model: nn.Module, order: Sequence[int]) -> None:
    """Move output number order[i] of a classifier to position i."""
    layer = output_layer(model)[1]
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            parameter.copy_(parameter[list(order)].clone())


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip().casefold())
