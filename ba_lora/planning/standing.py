"""Memory that a run holds on each device from its first step to its last: arithmetic that needs no large library."""

from typing import NamedTuple

from ..training.optimizers import state_bytes

BUCKET = 200_000_000  # elements that DeepSpeed reduces at once, as in configs/deepspeed
LIVE = 1_000_000_000  # parameters that ZeRO-3 keeps whole for a while; DeepSpeed's default
NF4 = 0.5 + 4 / 64  # bytes per weight: 4 bits, and a float32 scale per block of 64


class Held(NamedTuple):
    """The content of one whole replica of a model from `attach`. Sizes in bytes, the others are counts."""

    weights: int  # not trained
    adapter: int  # trained
    copy: int  # the teacher's part; in the delta form A0 and B0
    trained: int
    copied: int
    linear: int  # weights of the frozen linear layers except the head: those a 4-bit base rounds
    widest_linear: int  # weights of the largest of these layers
    weight_size: int  # bytes of one such weight
    widest: int  # weights of the module with the most weights of its own, which ZeRO-3 gathers whole
    sides: int = 0  # rows and columns of the trained matrices, and the numbers of other trained tensors
    small: int = 0  # trained numbers in tensors of less than optimizers.SMALLEST
    optimizer: str | None = None  # that trains it; None = AdamW


def state_of(whole: Held, zero_stage: int = 0) -> int:
    """Bytes of the optimizer's state; with ZeRO it is in float32."""
    size = 4 * whole.trained if zero_stage else whole.adapter
    return state_bytes(whole.optimizer, numbers=whole.trained, size=size, sides=whole.sides, small=whole.small)


def standing(
    whole: Held,
    zero_stage: int = 0,
    processes: int = 1,
    *,
    cast: bool = False,
    offload: bool = False,
    nf4: bool = False,
) -> dict[str, int]:
    """Bytes that a run holds on each device from its first step to its last.

    weights: untrained tensors; adapter: trained tensors; initial copy: the teacher's part, or A0 and B0; gradients: as large as the adapter;
    optimiser: its state, of AdamW two moments like the adapter; with DeepSpeed a master copy too, all in float32; buckets: buffers in
    which gradients are reduced, as large as the gradients with DistributedDataParallel. ZeRO divides by the number of processes:
    the optimiser from stage 1, the gradients from stage 2, all weights at stage 3, which gathers LIVE of them, or the largest
    module, for use.

    cast: DeepSpeed holds the adapter in bfloat16 like the base. offload: stage 3 keeps what it divides in CPU memory. nf4: the
    base's linear layers, except the head, in 4 bits; dequantised: one of them, for its product.
    """
    share = [processes if zero_stage >= stage else 1 for stage in range(4)]
    size = 2 if zero_stage and cast else 0
    adapter, copy = size * whole.trained or whole.adapter, size * whole.copied or whole.copy
    weights = whole.weights - (int((whole.weight_size - NF4) * whole.linear) if nf4 else 0)
    parts = {
        "weights": weights // share[3],
        "adapter": adapter // share[3],
        "initial copy": copy // share[3],
        "gradients": adapter // share[2],
        "optimiser": (state_of(whole, zero_stage) + (4 * whole.trained if zero_stage else 0)) // share[1],
    }
    if nf4:
        parts["dequantised"] = whole.weight_size * whole.widest_linear
    if offload:
        parts = dict.fromkeys(parts, 0)
    if zero_stage == 3:
        gathered = max(min(LIVE, whole.weights // whole.weight_size), whole.widest)
        parts["gathered"] = gathered * whole.weight_size if processes > 1 or offload else 0
    if zero_stage:  # two if reducing overlaps with the backward pass
        parts["buckets"] = BUCKET * (size or 4) * (2 if zero_stage < 3 else 1)
    elif processes > 1:
        parts["buckets"] = adapter
    return parts
