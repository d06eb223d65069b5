"""Measures planted content in a tuned twin, along the path from its base, and after a random update of the same size."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...laboratory.names import Twin
from ...laboratory.traces import measure
from ..matrix import Run

ALPHAS = (0.25, 0.5, 0.75)  # of W0 + α·ΔW; the base is α = 0, the run itself α = 1


def measure_planted(run: Run, twin: Twin, base: nn.Module, model: nn.Module, tokenizer) -> dict:
    """Return the traces and losses of a run on a twin (`laboratory.traces.measure`).

    If the run has a path, also {"path": {α: the same}}; if it has a random update, {"random": the same with ΔW replaced}: each
    updated matrix gets a random update of the rank and the Frobenius norm of its own, equal for both twins of a pair but for the norm.
    """
    found = measure(model, tokenizer, twin.seed)
    if not run.has_path:
        return found
    tuned = copy.deepcopy(model)
    tuned = dict((tuned.merge_and_unload() if hasattr(tuned, "merge_and_unload") else tuned).named_parameters())
    updates = {name: (tuned[name] - weight).detach() for name, weight in base.named_parameters()}
    updates = {name: update for name, update in updates.items() if update.any()}
    found["path"] = {
        str(alpha): measure(moved, tokenizer, twin.seed)
        for alpha, moved in ((alpha, _moved(base, updates, alpha)) for alpha in ALPHAS)
    }
    if not run.has_random:
        return found
    rank = None if run.arguments.method == "full" else run.arguments.rank
    found["random"] = measure(_moved(base, dict(_random(updates, rank, twin.seed)), 1.0), tokenizer, twin.seed)
    return found


@torch.no_grad()
def _moved(base: nn.Module, updates: dict[str, Tensor], alpha: float) -> nn.Module:
    """Return a copy of `base` with alpha times the updates added to its parameters."""
    moved = copy.deepcopy(base)
    for name, weight in moved.named_parameters():
        if name in updates:
            weight += alpha * updates[name]
    return moved


def _random(updates: dict[str, Tensor], rank: int | None, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield a random update of the shape and norm of each. rank: of the matrices; None = full rank."""
    generator = torch.Generator().manual_seed(seed)
    for name, update in updates.items():
        if rank is None or update.dim() != 2:
            drawn = torch.randn(update.shape, generator=generator)
        else:
            sizes = (update.shape[0], rank), (rank, update.shape[1])
            drawn = torch.randn(sizes[0], generator=generator) @ torch.randn(sizes[1], generator=generator)
        yield name, drawn * (torch.linalg.vector_norm(update) / torch.linalg.vector_norm(drawn))
