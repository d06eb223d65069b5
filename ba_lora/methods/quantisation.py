"""A frozen base in 4 bits (--quantize nf4): QLoRA, or QPiSSA with a PiSSA start.

The model is loaded and adapted in full precision. Then every frozen linear layer except the head stores its weight in NF4,
through bitsandbytes. With a PiSSA start that weight is the residual W_res, without W's leading singular values; the factors
stay in float32. Training therefore uses Q(W_res) + s·B0·A0, which is close to W but not equal to it: `quantise` measures how
close.

PEFT's lora.Linear stays around the new layer: its forward only calls the base layer, and the export only reads the factors.
PEFT's own lora.bnb.Linear4bit differs in that it can merge into the packed weight. Nothing here does that: a merged model is
made from the full-precision base. lora.Linear rejects that merge with an exception.
"""

import importlib.util
import logging

import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError

logger = logging.getLogger(__name__)

BLOCK = 64  # number of consecutive weights, in row order, that share a scale
REQUIREMENT = "bitsandbytes==0.50.2"


def check_package() -> None:
    """UserError if bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"--quantize needs the package bitsandbytes, which is not installed; install it with: pip install {REQUIREMENT} "
            "(the extra quantize)"
        )


def check_model(model: nn.Module) -> None:
    """UserError if `model`, before `attach`, has layers that cannot be held in 4 bits, or is already quantised."""
    name = type(model).__name__
    if came_quantised(model):
        raise UserError(f"--quantize: this {name} is already quantised; give the full-precision model")
    for place, module in model.named_modules():
        if isinstance(module, Conv1D):
            raise UserError(f"--quantize: {place} of this {name} is a Conv1D, not an nn.Linear; leave --quantize out")
        if type(module) is nn.Linear and module is not _head(model) and module.in_features % BLOCK:
            # on a CPU, bitsandbytes 0.50.2 silently misreads the scales of such a matrix
            raise UserError(
                f"--quantize: {place} of this {name} has rows of {module.in_features}, not a multiple of {BLOCK}; "
                "leave --quantize out"
            )


@torch.no_grad()
def quantise(model: nn.Module) -> dict:
    """Store the frozen linear layers of `model`, except its output head, in NF4, in place. `model` is from `attach`,
    untrained.

    Returns the record for run.json: "matrices", "weights" (the numbers in them), "bytes" (their size, including the scales),
    "relative_error" ‖W − (Q(W_res) + s·B0·A0)‖_F / ‖W‖_F over all of them together, "relative_error_without_start" the same
    for Q(W), and "better_matrices", the number of matrices that the start brings closer. With a LoRA start W_res is W. W is
    computed as W_res + s·B0·A0 with W_res as stored, in the model's precision.
    """
    names = _frozen_linears(model)
    weights = size = better = 0
    squares = torch.zeros(3, dtype=torch.float64)
    for name in names:  # frees one full-precision weight at a time
        place, _, key = name.rpartition(".")
        owner, layer = model.get_submodule(place), model.get_submodule(name)
        new = _in_4_bits(layer)
        start = owner.get_delta_weight(model.active_adapter) if key == "base_layer" else None
        found = _squares(layer.weight.detach(), dequantised(new), start)
        setattr(owner, key, new)
        weights += layer.weight.numel()
        size += new.weight.nbytes + new.weight.quant_state.absmax.nbytes
        better, squares = better + int(found[1] < found[2]), squares + found
    whole_norm, lost, plain = squares.sqrt().tolist()
    model.quantisation = {
        "kind": "nf4",
        "block": BLOCK,
        "matrices": len(names),
        "weights": weights,
        "bytes": size,
        "relative_error": lost / whole_norm,
        "relative_error_without_start": plain / whole_norm,
        "better_matrices": better,
        "adapter_is_for": "the full-precision base, which differs from what was trained on by relative_error",
    }
    logger.warning(
        "the base is in NF4: %d matrices with a relative error of %.4f (without the start %.4f); student and teacher start "
        "from there, near the pre-trained model, and the adapter is saved for the full-precision base",
        len(names),
        lost / whole_norm,
        plain / whole_norm,
    )
    return model.quantisation


def quantisation_of(model: nn.Module) -> dict | None:
    """The record that `quantise` returned for this model; None for any other."""
    return vars(model).get("quantisation")


def is_quantised(layer: nn.Module) -> bool:
    """Return True for a linear layer of bitsandbytes, in 4 or 8 bits."""
    return type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params")


def dequantised(layer: nn.Module) -> torch.Tensor:
    """The weight that a linear layer of bitsandbytes computes with: (out, in), in the precision that a Linear4bit was quantised
    from, in float32 for a Linear8bitLt."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    if type(layer.weight).__name__ == "Int8Params":
        scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB  # the first forward moves them
        return int8_vectorwise_dequant(layer.weight.data, scales)
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def came_quantised(model: nn.Module) -> bool:
    """Return True for a model that transformers loaded with a quantization_config."""
    return bool(getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None))


def keep_packing(model: nn.Module) -> None:
    """Make the 4-bit layers of `model` keep the packing that training needs.

    Otherwise an evaluation forward on a CPU with AVX512-BF16 packs the weight for a kernel that has no gradient and computes in
    bfloat16, and every later forward of the training uses it too."""
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _frozen_linears(model: nn.Module) -> list[str]:
    """Names of the frozen linear layers of a model from `attach`, except the output head."""
    head = _head(model.get_base_model() if isinstance(model, PeftModel) else model)
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and not module.weight.requires_grad
    ]


def _head(model: nn.Module) -> nn.Module | None:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _in_4_bits(layer: nn.Linear) -> nn.Module:
    """`layer` with its weight in NF4, on its device; one float32 scale per block, which is not quantised itself."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = layer.weight.detach()
    new = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=weight.dtype,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    packed = Params4bit(weight, blocksize=BLOCK, compress_statistics=False, quant_type="nf4", module=new)
    new.weight, new.bias = packed.to(weight.device), layer.bias
    keep_packing(new)
    return new.train(layer.training)


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    """`weight` in NF4 and back, in its precision."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(weight, blocksize=BLOCK, compress_statistics=False, quant_type="nf4"))


def _squares(residual: torch.Tensor, stored: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    """(‖W‖², ‖W_res − Q(W_res)‖², ‖W − Q(W)‖²) of one matrix, float64, on the CPU. start: s·B0·A0, None for 0."""
    whole, lost = residual.float(), residual.float() - stored.float()
    plain = lost
    if start is not None:
        whole = whole + start.float()
        plain = whole - _rounded(whole.to(residual.dtype)).float()
    return torch.stack(
        [torch.linalg.vector_norm(each, dtype=torch.float64) ** 2 for each in (whole, lost, plain)]
    ).cpu()
