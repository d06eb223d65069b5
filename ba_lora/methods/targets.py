"""Choose the layers of a model that are adapted, by name and never the head, and check that they can be."""

import re
from collections.abc import Sequence

from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError, nearest

_DECODER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # the paper's seven
# Default targets, by transformers' model type. Other types: all linear layers except the head (the same layers for the dense
# types here) and, in a mixture of experts, except router and gates. transformers stacks the experts of a mixture in one tensor
# per layer, which is not a linear layer. That leaves the attention, and in Qwen2-MoE the expert that sees every token.
DEFAULT_TARGETS = {
    **dict.fromkeys(("llama", "mistral", "gemma", "gemma3_text", "qwen2"), _DECODER),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}
_ROUTER = re.compile(r"(.+\.)?(router|gate|\w+_gate)(\..+)?")


def default_targets(model: nn.Module, head: Sequence[str] = ()) -> list[str] | None:
    """The layers of `model` that DEFAULT_TARGETS names for its type, else all linear layers outside `head` (in a mixture of
    experts without its router); None for a dense causal model of an unknown type."""
    known = DEFAULT_TARGETS.get(getattr(getattr(model, "config", None), "model_type", None), ())
    linears = linear_layers(model, head)
    present = {name.rpartition(".")[2] for name in linears}
    targets = [name for name in known if name in present]
    if not targets and stacked_experts(model):
        output, taken = model.get_output_embeddings(), taken_for_experts(model)
        beside = (name for name, layer in linears.items() if layer is not output and not _ROUTER.fullmatch(name))
        return sorted({name.rpartition(".")[2] for name in beside} - taken)
    return targets or (sorted(present) if head else None)


def taken_for_experts(model: nn.Module) -> set[str]:
    """Layer names that PEFT takes for a mixture's stacked experts or router, whatever layers have them now, because those
    had them before transformers 5."""
    pattern = _MODEL_TO_CONVERSION_PATTERN.get(getattr(getattr(model, "config", None), "model_type", None))
    return set(_MOE_TARGET_MODULE_MAPPING.get(pattern, ()))


def linear_layers(model: nn.Module, head: Sequence[str] = ()) -> dict[str, nn.Module]:
    """{name: layer} of every nn.Linear and Conv1D outside `head`."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not is_within(name, head)
    }


def is_within(name: str, modules: Sequence[str]) -> bool:
    """Return True if the module or tensor `name` is one of `modules` or a part of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def head_pattern(head: Sequence[str]) -> str | None:
    """A regular expression, as PEFT's exclude_modules takes it, for `head` and all its parts; None without a head."""
    return rf"({'|'.join(map(re.escape, head))})(\..+)?" if head else None


def stacked_experts(model: nn.Module) -> list[str]:
    """Names of the tensors in which a mixture stacks its experts; empty for a dense model."""
    return [name for name, parameter in model.named_parameters() if "expert" in name and parameter.dim() > 2]


def left_out(adapted: nn.Module, head: Sequence[str] = ()) -> dict[str, int]:
    """{name within a layer: count of numbers} of the matrices that an adapted model leaves unchanged: stacked experts and
    linear layers, excluding `head` and the output embeddings. Counts are summed over the model's layers."""
    output, left = adapted.get_output_embeddings() if hasattr(adapted, "get_output_embeddings") else None, {}
    sizes = {name: adapted.get_parameter(name).numel() for name in stacked_experts(adapted)}
    for name, layer in linear_layers(adapted, head).items():
        if layer is not output and not name.endswith(".base_layer") and ".lora_" not in name:
            sizes[name] = layer.weight.numel()
    for name, size in sizes.items():
        name = re.sub(r"^.*?\.\d+\.", "", name)
        left[name] = left.get(name, 0) + size
    return left


def chosen_layers(model: nn.Module, target_modules: Sequence[str] | None, head: Sequence[str] = ()) -> list[str]:
    """Names of the adapted linear layers outside `head`; target_modules None: all but the output embeddings."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        name
        for name, module in linear_layers(model, head).items()
        if (any(_matches(name, each) for each in target_modules) if target_modules else module is not output)
    ]


def check_targets(
    model: nn.Module, target_modules: Sequence[str] | None, rank: int, head: Sequence[str] = (), why: str = ""
) -> None:
    """UserError if a target name matches nothing, or if `rank` is larger than a matrix it would factor.

    why: text after the rank in the message, if it is not the requested one.
    """
    linears = linear_layers(model, head)
    taken = taken_for_experts(model) if stacked_experts(model) else ()
    for target in target_modules or ():
        if target.rpartition(".")[2] in taken:
            raise UserError(
                f"target module '{target}' of a {type(model).__name__} is taken by PEFT for its stacked experts or router; leave it out"
            )
        if not any(_matches(name, target) for name in linears):
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise UserError(
                f"target module '{target}' matches no linear layer{nearest(target, known)} (there are: {', '.join(known)})"
            )
    for name in chosen_layers(model, target_modules, head):
        module = linears[name]
        # packed 4-bit weights have lost their shape
        sides = (module.out_features, module.in_features) if isinstance(module, nn.Linear) else module.weight.shape
        if rank > min(sides):
            shape = "×".join(str(size) for size in sides)
            raise UserError(
                f"rank {rank}{why} is larger than the target matrix {name} ({shape}); use at most {min(sides)}"
            )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
