"""The PiSSA start: W = W_res + s·B0·A0, with the r leading singular triplets U, S, V of W in the factors (arXiv 2404.02948).

B0 = U·√(S/s) and A0 = √(S/s)·Vᵀ, s = alpha/rank, as PEFT defines them. In the residual form W_res replaces W and the factors are
trained; in the delta form (delta.py) W stays and their changes are trained. PEFT would decompose each layer when it creates it,
again in every run and every process, and would round the factors of a bfloat16 model to bfloat16. Here they stay float32, in
which they are trained.
"""

import time
from collections.abc import Mapping

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..errors import UserError
from .decomposition import Decomposer, decompose_all
from .delta import install
from .quantisation import dequantised, is_quantised

ADAPTER = "default"  # PEFT's name for the only adapter
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # PEFT supports the same ones
Factors = Mapping[str, tuple[Tensor, Tensor]]


def start_from_triplets(
    adapted: PeftModel, decomposer: Decomposer, progress: bool = False, form: str = "residual"
) -> dict:
    """Initialise every LoRA layer of `adapted`, whose factors have no values yet; returns what was done, for run.json.

    form: one of names.FORMS. "residual" in the result: the largest ‖W_res‖_F / ‖W‖_F of a matrix, the part of it that the factors
    leave (with an exact decomposition, the minimum for any factors of this rank). Raises UserError for weights of a type outside DTYPES.
    """
    began, layers = time.perf_counter(), _layers(adapted)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    kept, residuals = [], []
    for name, triplets, was_kept in decompose_all(shapes, lambda name: _matrix(layers[name]), decomposer, progress):
        layer = layers[name]
        root = torch.sqrt(triplets.s / layer.scaling[ADAPTER])
        residuals.append(_write(layer, root[:, None] * triplets.vh, triplets.u * root, form).item())
        kept.append(was_kept)
    return {
        "method": decomposer.start,
        "decomposed": len(kept) - sum(kept),
        "from_cache": sum(kept),
        "residual": max(residuals),
        "seconds": time.perf_counter() - began,
    }


def start_from_factors(adapted: PeftModel, factors: Factors, form: str = "residual") -> None:
    """Initialise every LoRA layer from {name of the layer: (A0 (r, in), B0 (out, r))}, bit-equal to the start that they were
    taken from, in either form. Raises UserError if they do not belong to this model's layers."""
    layers = _layers(adapted)
    strange = sorted(layers.keys() ^ factors.keys())
    if strange:
        known = "is not adapted" if strange[0] in factors else "has none"
        raise UserError(f"factors: the layer {strange[0]} {known}; give those of the same model and target modules")
    for name, layer in layers.items():
        given = [tuple(tensor.shape) for tensor in factors[name]]
        rank = layer.r[ADAPTER]
        expected = [(rank, layer.in_features), (layer.out_features, rank)]
        if given != expected:
            raise UserError(
                f"factors of the layer {name} have the shapes {given}, not {expected}; give those of rank {rank}"
            )
        _write(layer, *factors[name], form)


def _layers(adapted: PeftModel) -> dict[str, LoraLayer]:
    """{name in the model before it was adapted: layer}. UserError for weights that cannot be decomposed."""
    layers = {name: m for name, m in adapted.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    for name, layer in layers.items():
        dtype = layer.get_base_layer().weight.dtype
        if dtype not in DTYPES and not is_quantised(layer.get_base_layer()):
            raise UserError(
                f"a PiSSA start decomposes float32, bfloat16 or float16 weights and {name} is {str(dtype).removeprefix('torch.')}; "
                "load the model as one of them"
            )
    return layers


def _matrix(layer: LoraLayer) -> Tensor:
    """The layer's weight as (out, in); that of a quantised layer as it computes with it."""
    base = layer.get_base_layer()
    if is_quantised(base):
        return dequantised(base).detach()
    weight = base.weight.detach()
    return weight.T if layer.fan_in_fan_out else weight


@torch.no_grad()
def _write(layer: LoraLayer, a: Tensor, b: Tensor, form: str) -> Tensor:
    """Put A0 (r, in) and B0 (out, r) into the layer; returns ‖W_res‖_F / ‖W‖_F of W_res = W − s·B0·A0. In the residual form W_res
    replaces the weight, in the delta form it stays."""
    matrix = _matrix(layer)
    device = (
        a.device if matrix.device.type == "cpu" else matrix.device
    )  # on which a model kept on the host was decomposed
    a, b = (tensor.to(device, torch.float32).contiguous() for tensor in (a, b))
    whole = matrix.to(device, torch.float32)
    rest = whole - layer.scaling[ADAPTER] * b @ a
    a, b = a.to(matrix.device), b.to(matrix.device)
    if form == "delta":
        install(layer, ADAPTER, a, b)
    else:
        layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight = nn.Parameter(a), nn.Parameter(b)
        weight = rest.to(matrix)
        layer.get_base_layer().weight.data = weight.T.contiguous() if layer.fan_in_fan_out else weight
    return torch.linalg.matrix_norm(rest) / torch.linalg.matrix_norm(whole)
