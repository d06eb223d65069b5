"""LoRA factors for a base in 16 bits, which keep the update when they are rounded to the base's precision.

The export of a PiSSA adapter is the difference of two products, B·A − B0·A0, written as one: [B, −B0]·[A; A0]. Each of them is about
as large as the leading part of the weight, and their difference may be a thousandth of that. Rounded as they are, the factors lose
it: bfloat16 keeps three digits. The same update from the singular vectors of the difference has nothing to cancel, and rounding
costs it at most about 2⁻⁸ of its norm, as it costs any LoRA adapter and as autocast does in training. Factors in float32 would stay
exact, but each of their products would run in float32, and a generation 1.3 to 2 times as long (estimated, not run here).
"""

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

HALVES = (torch.bfloat16, torch.float16)


def refactored(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """(B', A') of the shapes of `b` (out, r) and `a` (r, in), float32, with B'·A' = B·A and factors of equal norm.

    From the singular value decomposition of B·A in float64, by way of the QR decompositions of both factors.
    """
    left, upper = torch.linalg.qr(b.double())  # (out, k), (k, r)
    right, lower = torch.linalg.qr(a.double().T)  # (in, l), (l, r)
    u, values, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    root = values.sqrt()
    new_b, new_a = (left @ u) * root, root[:, None] * (vh @ right.T)
    rank = b.shape[1]
    missing = rank - len(values)  # the rank exceeds a side of the matrix
    new_b, new_a = nn.functional.pad(new_b, (0, missing)), nn.functional.pad(new_a, (0, 0, 0, missing))
    return new_b.float().contiguous(), new_a.float().contiguous()


@torch.no_grad()
def round_factors(model: nn.Module) -> int:
    """Bring the float32 factors of plain LoRA on a base in 16 bits to the base's precision, for evaluation; return their layers.

    On a base in float32 nothing changes, nor in other layers: DoRA's norms, AdaLoRA's triplets and trained heads stay.
    """
    count = 0
    for layer in model.modules():
        if type(layer) is not Linear:
            continue
        dtype = layer.get_base_layer().weight.dtype
        for name in layer.active_adapters:
            if name in layer.lora_variant:
                continue
            a, b = layer.lora_A[name], layer.lora_B[name]
            if dtype in HALVES and a.weight.dtype == b.weight.dtype == torch.float32:
                new_b, new_a = refactored(b.weight, a.weight)
                b.weight.data, a.weight.data = new_b.to(dtype), new_a.to(dtype)
                count += 1
    return count


def refactored_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a plain LoRA adapter with each pair of factors refactored, for software that rounds them to 16 bits itself."""
    made = dict(tensors)
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            other = name.replace("lora_A", "lora_B")
            made[other], made[name] = refactored(tensors[other], a)
    return made
