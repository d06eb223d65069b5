"""Untie a weight that two layers share, such as an output head tied to the embeddings, if one of the layers is adapted.

An adapter changes the function of one layer. A PiSSA start or a merge writes into that layer's weight, and would change the
other layer too. An adapted output head that is tied to the embeddings therefore gets its own copy, and so do adapted
embeddings. The exported adapter still fits the tied base; a merged model is saved untied.
"""

import logging
from collections.abc import Iterable

import torch
from torch import nn

from ..errors import UserError

logger = logging.getLogger(__name__)


def untie(model: nn.Module, layers: Iterable[str], refuse: bool = True) -> None:
    """Give each of `layers` (names of modules of `model`) its own weight if it shares it with another module.

    Raises UserError for any weight except that of the embeddings and the output head, because transformers could not save
    the untied model; with refuse=False such layers stay as they are.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for layer in layers:
        module = model.get_submodule(layer)
        weight = getattr(module, "weight", None)
        others = [name for name in names.get(id(weight), ()) if name != f"{layer}.weight"]
        if not others:
            continue
        shown = layer.removesuffix(".base_layer")
        if {_plain(name) for name in (*others, f"{layer}.weight")} == _tied_embeddings(model):
            logger.warning(
                "%s shares its weight with %s and is adapted: it gets its own copy of %s numbers; a merged "
                "model is saved with tie_word_embeddings false",
                shown,
                _plain(others[0]).removesuffix(".weight"),
                f"{weight.numel():,}",
            )
            with torch.no_grad():
                module.weight = nn.Parameter(weight.clone(), requires_grad=weight.requires_grad)
            _say_untied(model)
        elif refuse:
            raise UserError(
                f"{shown} shares its weight with {_plain(others[0]).removesuffix('.weight')}, so it cannot be adapted or merged "
                f"alone in this {type(model).__name__}; leave it out of the target modules"
            )


def _plain(name: str) -> str:
    """The name of a tensor before its layer was adapted."""
    return name.replace(".base_layer.", ".")


def _tied_embeddings(model: nn.Module) -> set[str]:
    """The names of the two tensors that transformers ties in this model; empty if it ties others or none."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {*tied.keys(), *tied.values()} if len(tied) == 1 else set()


def _say_untied(model: nn.Module) -> None:
    """Keep transformers from tying the two again, and from saving only one of them."""
    model.all_tied_weights_keys = {}
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
