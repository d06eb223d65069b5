"""AdaLoRA (Zhang et al. 2023) on PEFT's layers: its schedule, its penalty, and the triplets that remain in effect.

The update of a layer is B·diag(E)·A. Every layer starts with 1.5 times the requested rank; during training the least
important triplets of the whole model are masked, until the average rank is the requested one.
"""

import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from torch import Tensor, nn

from ..errors import UserError

ORTHOGONALITY = 0.1  # weight of the penalty; PEFT's default is 0.5
# The first 1/10 of the steps keeps all ranks, the last 1/2 the final ones: roughly as in that paper.
WARMUP, FINAL = 10, 2
ALLOCATIONS = 1000  # maximum number of rank allocations


class AdaLora(AdaLoraModel):
    """PEFT's model, but its forward leaves the loss alone: callers add the penalty themselves, once, through `penalty`."""

    def forward(self, *inputs, **options):
        return self.model.forward(*inputs, **options)


def start_rank(rank: int) -> int:
    """The initial rank of every layer: 1.5 times the final one."""
    return max(rank + 1, -(-3 * rank // 2))


def adalora_config(rank: int, alpha: float, total_steps: int | None, **options) -> AdaLoraConfig:
    """PEFT's configuration for training over `total_steps` optimiser steps. The update is scaled by alpha/start_rank(rank)."""
    if total_steps is None or total_steps < 1:
        raise UserError(
            f"adalora plans its ranks over the training and got total_steps {total_steps}; give their number"
        )
    return AdaLoraConfig(
        init_r=start_rank(rank),
        target_r=rank,
        lora_alpha=alpha,
        total_step=total_steps,
        tinit=total_steps // WARMUP,
        tfinal=total_steps // FINAL,
        deltaT=max(1, total_steps // ALLOCATIONS),
        orth_reg_weight=ORTHOGONALITY,
        **options,
    )


def leave_loss_alone(model: PeftModel) -> None:
    """Keep the forward of an AdaLoRA model from adding the penalty to a loss. Other models are unchanged."""
    if type(model.base_model) is AdaLoraModel:
        model.base_model.__class__ = AdaLora  # PEFT chooses the class by that of the configuration


def penalty(model: nn.Module) -> Tensor | None:
    """AdaLoRA's weighted orthogonality penalty: the mean over the factors of ‖AAᵀ − I‖_F and ‖BᵀB − I‖_F. None for other
    methods."""
    if not _is_adalora(model):
        return None
    norms = []
    for name, factor in model.base_model.model.named_parameters():
        if factor.requires_grad and (".lora_A." in name or ".lora_B." in name):
            gram = factor @ factor.T if ".lora_A." in name else factor.T @ factor  # (rank, rank)
            norms.append(
                torch.linalg.matrix_norm(
                    gram.to(torch.promote_types(gram.dtype, torch.float32)) - torch.eye(len(gram), device=gram.device)
                )
            )
    return model.peft_config[model.active_adapter].orth_reg_weight * torch.stack(norms).mean()


def after_step(model: nn.Module, step: int) -> None:
    """Update AdaLoRA's ranks; a no-op for other methods. Call it after optimizer.step() and before zero_grad().

    step: number of this optimiser step; the first is 0.
    """
    if _is_adalora(model):
        model.base_model.update_and_allocate(step)


def allocator_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of the rank allocation, in addition to the trained tensors, for a checkpoint; {} for other methods."""
    if not _is_adalora(model):
        return {}
    allocator = model.base_model.rankallocator
    averages = {"ipt": allocator.exp_avg_ipt, "unc": allocator.exp_avg_unc}
    state = {f"{kind}.{name}": tensor for kind, tensors in averages.items() for name, tensor in tensors.items()}
    pattern = model.peft_config[model.active_adapter].rank_pattern or {}
    return state | {f"kept.{name}": torch.tensor(kept) for name, kept in pattern.items()}


def restore_allocator(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Restore what `allocator_state` returned; other tensors in `state` are ignored."""
    if not _is_adalora(model):
        return
    devices = {name: parameter.device for name, parameter in model.base_model.model.named_parameters()}

    def of(kind: str) -> dict[str, Tensor]:
        names = [name for name in state if name.startswith(f"{kind}.")]
        found = {name.removeprefix(f"{kind}."): state[name] for name in names}
        return {name: tensor.to(devices[name]) for name, tensor in found.items()}

    allocator = model.base_model.rankallocator
    allocator.exp_avg_ipt, allocator.exp_avg_unc = of("ipt"), of("unc")
    allocator.ipt = of("ipt")  # PEFT restarts the averages if this has no entry, and overwrites the entry
    pattern = {name: kept.tolist() for name, kept in of("kept").items()}
    model.peft_config[model.active_adapter].rank_pattern = pattern or None


def effective_ranks(model: PeftModel) -> dict[str, list[bool]] | None:
    """Which triplets have a nonzero singular value, by the name of their E; None before the first allocation.

    This is not PEFT's own record: a masked value may change again between two allocations.
    """
    if model.peft_config[model.active_adapter].rank_pattern is None:
        return None
    values = {n: p for n, p in model.base_model.model.named_parameters() if f".lora_E.{model.active_adapter}" in n}
    return {name: (value != 0).view(-1).tolist() for name, value in values.items()}


def _is_adalora(model: nn.Module) -> bool:
    return isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel)
