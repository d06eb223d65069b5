"""Modules that are trained whole beside the factors (PEFT's modules_to_save): which ones a name means, and what is refused."""

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UserError, nearest
from .targets import is_within

FINE = (torch.float32, torch.float64)


def whole_modules(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The full names of the modules of `model` that `names` mean: each is a full name or its end.

    A module of the same adapter that is saved with it has to be the base's own: UserError for the output head, a weight that another
    module shares, weights in 16 bits, in which small steps are lost, and a name of nothing.
    """
    modules, found = dict(model.named_modules()), []
    for name in names:
        matching = [each for each in modules if each == name or each.endswith(f".{name}")]
        if not matching:
            known = sorted(
                {each.rpartition(".")[2] for each, module in modules.items() if [*module.parameters(recurse=False)]}
            )
            raise UserError(
                f"--modules_to_save {name}: no module of this {type(model).__name__} has this name{nearest(name, known)}"
            )
        found += [each for each in matching if each not in found]
    found = [name for name in found if not is_within(name, [each for each in found if each != name])]
    for name in found:
        _check(model, name, modules[name])
    return tuple(found)


def _check(model: nn.Module, name: str, module: nn.Module) -> None:
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if output is not None and any(each is output for each in module.modules()):
        raise UserError(
            f"--modules_to_save {name}: the chunked objective has no gradient for the head; leave it out, or adapt it with "
            "--target_modules"
        )
    own = {id(parameter) for parameter in module.parameters()}
    if not own:
        raise UserError(f"--modules_to_save {name}: this {type(module).__name__} has no weights; leave it out")
    for other, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in own and not is_within(other, [name]):
            raise UserError(
                f"--modules_to_save {name} shares its weights with {other}, which would be trained too; leave it out"
            )
    coarse = next((parameter.dtype for parameter in module.parameters() if parameter.dtype not in FINE), None)
    if coarse is not None:
        raise UserError(
            f"--modules_to_save {name} would be trained in {str(coarse).removeprefix('torch.')}, which loses small steps; use "
            "--dtype float32, or leave it out"
        )
