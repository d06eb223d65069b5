"""Convert GPT-2's Conv1D to nn.Linear and back (the same function, weight transposed), for a method that rejects Conv1D."""

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from .targets import is_within


def to_linear(model: nn.Module, head: Sequence[str] = ()) -> list[str]:
    """Replace every Conv1D of `model` outside `head` by the equal nn.Linear; returns their names, possibly none."""
    names = [n for n, module in model.named_modules() if isinstance(module, Conv1D) and not is_within(n, head)]
    for name in names:
        old = model.get_submodule(name)  # weight: (in, out)
        new = nn.Linear(*old.weight.shape, device=old.weight.device, dtype=old.weight.dtype)
        _put(model, name, old, new)
    return names


def to_conv1d(model: nn.Module, names: Sequence[str]) -> None:
    """Undo `to_linear`, so that the model is saved in its original architecture."""
    for name in names:
        old = model.get_submodule(name)  # weight: (out, in)
        new = Conv1D(*old.weight.shape).to(old.weight.device, old.weight.dtype)
        _put(model, name, old, new)


def _put(model: nn.Module, name: str, old: nn.Module, new: nn.Module) -> None:
    """Replace `old` by `new`, with the values of `old`, the weight transposed."""
    new.weight = nn.Parameter(old.weight.detach().t().contiguous(), requires_grad=old.weight.requires_grad)
    new.bias = old.bias
    new.train(old.training)
    owner, _, key = name.rpartition(".")
    setattr(model.get_submodule(owner), key, new)
