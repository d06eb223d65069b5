"""Which layers of a model are adapted, and whether they can be: by name, never the head."""

import logging
import re
from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from .errors import UserError, nearest

logger = logging.getLogger(__name__)

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
# What is adapted when nothing is named, by transformers' model type; other types: all linear layers but the head, which is
# the same for the dense types here. transformers stacks the experts of a mixture in one tensor a layer, which is no linear
# layer: there the attention is adapted, and of Qwen2-MoE the expert that sees every token; never the stacked experts, the router,
# or the gate of a shared expert. DeepSeek-V2's shared experts stay too: PEFT takes their layers' names for the stacked ones.
DEFAULT_TARGETS = {
    **dict.fromkeys(("llama", "mistral", "gemma", "gemma3_text", "qwen2", "qwen2_moe"), (*_ATTENTION, *_MLP)),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "mixtral": _ATTENTION,
    "deepseek_v2": ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
}


def default_targets(model: nn.Module, head: Sequence[str] = ()) -> list[str] | None:
    """The layers of `model` that DEFAULT_TARGETS names for its type, else all linear layers outside `head`; None for a
    causal model of a type that it does not know."""
    known = DEFAULT_TARGETS.get(getattr(getattr(model, "config", None), "model_type", None), ())
    linears = linear_layers(model, head)
    present = {name.rpartition(".")[2] for name in linears}
    targets = [name for name in known if name in present] or (sorted(present) if head else None)
    stacked = stacked_experts(model)
    if stacked:
        logger.warning(
            "the experts (%s, ... %s of the %s parameters) are stacked tensors, no linear layers, and stay as they are; adapted: %s",
            stacked[0],
            f"{sum(model.get_parameter(name).numel() for name in stacked):,}",
            f"{sum(parameter.numel() for parameter in model.parameters()):,}",
            ", ".join(targets or ["all linear layers"]),
        )
    return targets


def linear_layers(model: nn.Module, head: Sequence[str] = ()) -> dict[str, nn.Module]:
    """{name: layer} of every nn.Linear and Conv1D outside `head`."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not is_within(name, head)
    }


def is_within(name: str, modules: Sequence[str]) -> bool:
    """Whether the module or tensor `name` is one of `modules` or a part of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def head_pattern(head: Sequence[str]) -> str | None:
    """A regular expression, as PEFT's exclude_modules takes it, for `head` and all its parts; None without a head."""
    return rf"({'|'.join(map(re.escape, head))})(\..+)?" if head else None


def stacked_experts(model: nn.Module) -> list[str]:
    """Names of the tensors in which a mixture of experts holds its experts one upon another; none in a dense model."""
    return [name for name, parameter in model.named_parameters() if "expert" in name and parameter.dim() > 2]


def check_targets(
    model: nn.Module, target_modules: Sequence[str] | None, rank: int, head: Sequence[str] = (), why: str = ""
) -> None:
    """UserError when a target name matches nothing, or when `rank` is larger than a matrix it would factor.

    why: said after the rank, where it is not the one that was asked for.
    """
    linears = linear_layers(model, head)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for target in target_modules or ():
        if not any(_matches(name, target) for name in linears):
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise UserError(
                f"target module '{target}' matches no linear layer{nearest(target, known)} (there are: {', '.join(known)})"
            )
    for name, module in linears.items():
        chosen = any(_matches(name, each) for each in target_modules) if target_modules else module is not output
        if chosen and rank > min(module.weight.shape):
            shape = "×".join(str(size) for size in module.weight.shape)
            raise UserError(
                f"rank {rank}{why} is larger than the target matrix {name} ({shape}); use at most {min(module.weight.shape)}"
            )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
