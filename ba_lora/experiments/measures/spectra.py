"""Singular values of what a run changed: the logits before and after, the weights, and their update."""

import torch
from torch import Tensor, nn

from ...data.collator import counted
from ...methods.targets import linear_layers
from ...objective.spectrum import singular_values

KEPT = 48  # leading values; an update of rank 16 has 16 nonzero ones


@torch.inference_mode()
def logits_spectrum(model: nn.Module, collator, samples: list[dict]) -> list[float]:
    """Return the leading singular values of the (N, V) logits of the samples' response tokens, relative to their Frobenius norm."""
    batch = collator(samples)
    rows = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return _shares(singular_values(rows[counted(batch["labels"])].float()))


@torch.inference_mode()
def update_spectra(base: nn.Module, model: nn.Module) -> dict[str, list[float]]:
    """Return {"weights", "update"}: leading singular values of the base's linear weights W and of W' − W, relative to ‖W‖_F and
    averaged over layers. model: the tuned model; an adapter is merged into it. Unchanged layers count as zeros."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    tuned = dict(model.named_modules())
    head = base.get_output_embeddings()
    weights, updates = [], []
    for name, layer in linear_layers(base, [name for name, each in base.named_modules() if each is head]).items():
        if name in tuned and hasattr(tuned[name], "weight"):
            norm = torch.linalg.vector_norm(layer.weight).item()
            weights.append(_padded(singular_values(layer.weight.float()) / norm))
            updates.append(_padded(singular_values((tuned[name].weight - layer.weight).float()) / norm))
    return {
        name: [float(f"{value:.4g}") for value in torch.stack(rows).mean(0)]
        for name, rows in (("weights", weights), ("update", updates))
    }


def _shares(sigma: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in (sigma / torch.linalg.vector_norm(sigma))[:KEPT]]


def _padded(sigma: Tensor) -> Tensor:
    return torch.nn.functional.pad(sigma[:KEPT], (0, max(0, KEPT - len(sigma))))
