"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # this module needs no torch of its own
    from torch import nn


@contextmanager
def evaluating(model: "nn.Module") -> Iterator[None]:
    """Every module of `model` is in evaluation mode inside the block; each one's own mode is restored afterwards.

    `model.eval()` and `model.train()` would give all modules one mode, also those that were frozen in the other.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
