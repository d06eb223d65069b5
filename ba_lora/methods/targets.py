"""Choose the layers of a model that are adapted, by name and never the head, and check that they can be."""

import re
from collections.abc import Sequence

from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError, nearest
from .target_names import ALL_LINEAR, Targets

_DECODER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # the paper's seven
# Default targets, by transformers' model type. Other types: all linear layers except the head (the same layers for the dense
# types here) and, in a mixture of experts, except router and gates. transformers stacks the experts of a mixture in one tensor
# per layer, which is not a linear layer. That leaves the attention, and in Qwen2-MoE the expert that sees every token.
DEFAULT_TARGETS = {
    **dict.fromkeys(("llama", "mistral", "gemma", "gemma3_text", "qwen2"), _DECODER),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}
_ROUTER = re.compile(r"(.+\.)?(router|gate|\w+_gate)(\..+)?")
_NUMBER = re.compile(r".*?\.[^.]*\.(\d+)\.")  # of a layer: the first number in a module's name, as PEFT finds it


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


def chosen_layers(
    model: nn.Module, targets: Targets, head: Sequence[str] = (), layers: Sequence[int] | None = None
) -> list[str]:
    """Names of the adapted linear layers outside `head`. targets: names, a pattern, or ALL_LINEAR or None for all but the output
    embeddings. layers: numbers of the layers that they are in; None = any."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None

    def is_chosen(name: str, module: nn.Module) -> bool:
        if targets is None or targets == ALL_LINEAR:
            return module is not output
        if isinstance(targets, str):
            return re.fullmatch(targets, name) is not None
        return any(_matches(name, each) for each in targets)

    chosen = [name for name, module in linear_layers(model, head).items() if is_chosen(name, module)]
    return chosen if layers is None else [name for name in chosen if number_of(name) in layers]


def number_of(name: str) -> int | None:
    """The number of the layer that the module `name` is in; None if it is in none."""
    found = _NUMBER.match(name)
    return found and int(found[1])


def names_for_peft(
    model: nn.Module, targets: Targets, head: Sequence[str] = (), layers: Sequence[int] | None = None
) -> list[str] | None:
    """`targets` as PEFT's target_modules beside layers_to_transform: names as they are; a pattern and ALL_LINEAR as names, short ones
    if they choose the same layers. Every software that opens adapters reads names. None is PEFT's all-linear."""
    if not isinstance(targets, str) and (targets is not None or layers is None):
        return targets
    chosen = chosen_layers(model, targets, head)
    shorter = sorted({name.rpartition(".")[2] for name in chosen})
    return shorter if chosen_layers(model, shorter, head) == chosen else chosen


def check_targets(
    model: nn.Module,
    targets: Targets,
    rank: int,
    head: Sequence[str] = (),
    why: str = "",
    layers: Sequence[int] | None = None,
) -> None:
    """UserError if a target name or the layers match nothing, if a pattern matches what is not a linear layer, or if `rank` is larger
    than a matrix it would factor.

    why: text after the rank in the message, if it is not the requested one.
    """
    linears = linear_layers(model, head)
    _check_pattern(model, targets, linears, head)
    named = names_for_peft(model, targets, head) or ()
    taken = taken_for_experts(model) if stacked_experts(model) else ()
    for target in named:
        if target.rpartition(".")[2] in taken:
            raise UserError(
                f"target module '{target}' of a {type(model).__name__} is taken by PEFT for its stacked experts or router; leave it out"
            )
        if not any(_matches(name, target) for name in linears):
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise UserError(
                f"target module '{target}' matches no linear layer{nearest(target, known)} (there are: {', '.join(known)})"
            )
    _check_numbers(model, targets, head, layers)
    for name in chosen_layers(model, targets, head, layers):
        module = linears[name]
        # packed 4-bit weights have lost their shape
        sides = (module.out_features, module.in_features) if isinstance(module, nn.Linear) else module.weight.shape
        if rank > min(sides):
            shape = "×".join(str(size) for size in sides)
            raise UserError(
                f"rank {rank}{why} is larger than the target matrix {name} ({shape}); use at most {min(sides)}"
            )


def _check_pattern(model: nn.Module, targets: Targets, linears: dict[str, nn.Module], head: Sequence[str]) -> None:
    if not isinstance(targets, str) or targets == ALL_LINEAR:
        return
    matched = [name for name, _ in model.named_modules() if re.fullmatch(targets, name) and not is_within(name, head)]
    example = next(iter(linears), "none")
    if not any(name in linears for name in matched):
        raise UserError(
            f"--target_modules {targets} matches no linear layer; it has to match a whole name, such as {example}"
        )
    for name in matched:
        if name not in linears:
            raise UserError(
                f"--target_modules {targets} also matches '{name}', a {type(model.get_submodule(name)).__name__}; write it so that it "
                f"matches linear layers alone, such as {example}"
            )


def _check_numbers(model: nn.Module, targets: Targets, head: Sequence[str], layers: Sequence[int] | None) -> None:
    if layers is None:
        return
    there = sorted({number_of(name) for name in chosen_layers(model, targets, head)} - {None})
    absent = sorted(set(layers) - set(there))
    if absent:
        known = (
            f"0 to {there[-1]}" if there == list(range(len(there))) and there else ", ".join(map(str, there)) or "none"
        )
        raise UserError(
            f"--layers: no target module is in layer {absent[0]} (layers of this model: {known}); correct it"
        )
    for target in targets if isinstance(targets, Sequence) and not isinstance(targets, str) else ():
        if not chosen_layers(model, [target], head, layers):
            raise UserError(
                f"--layers: target module '{target}' is in none of these layers; leave it out, or add its layer"
            )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
