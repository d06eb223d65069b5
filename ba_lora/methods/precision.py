"""The precision of an adapted layer's input under autocast."""

from functools import partial

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from .delta import DeltaVariant


def keep_inputs_under_autocast(model: nn.Module) -> None:
    """Pass the input of every LoRA layer on as it is while autocast is on.

    PEFT casts it to the factors' float32, and autocast rounds it back for the product: the same numbers after two more passes
    over the input. Outside autocast PEFT's cast stays, without which a float32 factor and a bfloat16 input do not multiply.
    Variants such as DoRA keep it everywhere: DoRA's norms take the input's precision. The delta form has
    nothing but products; there the gradients of the input are then added in 16 bits, as the base's own is.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and all(isinstance(each, DeltaVariant) for each in layer.lora_variant.values()):
            layer._cast_input_dtype = partial(_cast_outside_autocast, layer._cast_input_dtype)


def _cast_outside_autocast(cast, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x if x is not None and torch.is_autocast_enabled(x.device.type) else cast(x, dtype)
