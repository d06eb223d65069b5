"""The delta form of a PiSSA start: the base keeps its weights, and the trained tensors are the changes of the factors.

With A = A0 + ΔA and B = B0 + ΔB, PiSSA's weight is a LoRA of twice the rank on the base, and the base itself at the start:

    W − s·B0·A0 + s·B·A = W + s·(B0·ΔA + ΔB·A0 + ΔB·ΔA) = W + s·[B0 + ΔB, ΔB]·[ΔA; A0]

A0 and B0 are frozen. ΔA and ΔB start at zero and have the gradients of A and B, so clipping and AdamW move them as they would move
the factors; only weight decay differs, which pulls towards the start here and towards zero there. The base is never written to and
nothing is subtracted from it. It may be quantised, several adapters may use it, and without its adapter it is the teacher, bit for bit.

PEFT's layer calls a DeltaVariant, as it does for DoRA. ΔA and ΔB are its lora_A and lora_B, A0 and B0 are lora_A0 and lora_B0 beside
them, so PEFT never trains these and removes them with the adapter.
"""

from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.utils.other import transpose
from torch import Tensor, nn

START = ("lora_A0", "lora_B0")


class DeltaVariant(LoraVariant):
    """The forward pass and the merges of a layer in delta form."""

    def supports_lora_conversion(self) -> bool:
        return False  # PEFT would take ΔB·ΔA for the whole update; `export` writes plain LoRA

    @staticmethod
    def forward(module: LoraLayer, *, active_adapter: str, x: Tensor, result: Tensor, **ignored) -> Tensor:
        """result + s·(B0·h + ΔB·(A0·x + h)) with h = ΔA·x: four products with the factors, as two of twice the rank would need."""
        x = module.lora_dropout[active_adapter](x)
        low = module.lora_A[active_adapter](x)  # (…, r)
        start = module.lora_A0[active_adapter](x)
        update = module.lora_B0[active_adapter](low) + module.lora_B[active_adapter](start + low)
        return result + update * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + _update(module, active_adapter).to(orig_weight)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += _update(module, active_adapter).to(orig_weight)

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight - _update(module, active_adapter).to(orig_weight)


def install(layer: LoraLayer, adapter: str, a: Tensor, b: Tensor) -> None:
    """Turn `adapter` of `layer` to the delta form, with A0 = `a` (r, in) and B0 = `b` (out, r)."""
    for group, trained, start in (("lora_A0", layer.lora_A, a), ("lora_B0", layer.lora_B, b)):
        if not hasattr(layer, group):
            layer.add_module(group, nn.ModuleDict())
            layer.other_param_names = (*layer.other_param_names, group)  # PEFT deletes them with the adapter
        frozen = nn.Linear(start.shape[1], start.shape[0], bias=False, device="meta")
        frozen.weight = nn.Parameter(start, requires_grad=False)
        getattr(layer, group)[adapter] = frozen
        trained[adapter].weight = nn.Parameter(torch.zeros_like(start))
    layer.lora_variant[adapter] = DeltaVariant()


def in_delta_form(layer: nn.Module) -> bool:
    """Return True if an active adapter of `layer` is in delta form."""
    variants = getattr(layer, "lora_variant", {})
    return any(isinstance(variants.get(name), DeltaVariant) for name in layer.active_adapters)


def delta_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """{name: layer} of the layers of `model` in delta form."""
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer) and in_delta_form(layer)
    }


def start_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """{parameter name: A0 or B0} of the layers in delta form; {} for any other model."""
    return dict(_named(model, START))


def change_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """{parameter name: ΔA or ΔB} of the layers in delta form; {} for any other model."""
    return dict(_named(model, ("lora_A", "lora_B")))


def _named(model: nn.Module, groups: tuple[str, ...]) -> Iterator[tuple[str, nn.Parameter]]:
    for name, layer in delta_layers(model).items():
        for group in groups:
            for adapter, factor in getattr(layer, group).items():
                if isinstance(layer.lora_variant.get(adapter), DeltaVariant):
                    yield f"{name}.{group}.{adapter}.weight", factor.weight


def as_lora(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """{name in an adapter's file: tensor} of the layers in delta form as plain LoRA of rank 2r: [ΔA; A0] and [B0 + ΔB, ΔB], float32."""
    made = {}
    for name, layer in delta_layers(model).items():
        a, b = (_wide(layer, adapter, which) for which in "AB")
        made[f"{name}.lora_A.weight"], made[f"{name}.lora_B.weight"] = a, b
    return made


def _wide(layer: LoraLayer, adapter: str, which: str) -> Tensor:
    """[ΔA; A0] (2r, in) or [B0 + ΔB, ΔB] (out, 2r) in at least float32: B0 + ΔB would lose ΔB in 16 bits."""
    groups = getattr(layer, f"lora_{which}"), getattr(layer, f"lora_{which}0")
    change, start = (group[adapter].weight.detach() for group in groups)
    exact = torch.promote_types(change.dtype, torch.float32)
    change, start = change.to(exact), start.to(exact)
    return torch.cat([change, start]) if which == "A" else torch.cat([start + change, change], dim=1)


def _update(layer: LoraLayer, adapter: str) -> Tensor:
    """The change of the layer's weight, in its own orientation, in at least float32."""
    product = _wide(layer, adapter, "B") @ _wide(layer, adapter, "A")
    return transpose(product, getattr(layer, "fan_in_fan_out", False)) * layer.scaling[adapter]
