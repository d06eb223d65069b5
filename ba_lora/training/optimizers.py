"""The optimizers of --optimizer, by transformers' names: what they need and how much state they keep. Needs no large library."""

from importlib.util import find_spec
from typing import NamedTuple

from ..errors import UserError
from ..files import read_json

SMALLEST = 4096  # bitsandbytes keeps the state of smaller tensors in 32 bits
BLOCK = 256  # numbers that share a scale in bitsandbytes' 8 bits


class Optimizer(NamedTuple):
    """moments: numbers that it keeps for each trained number. kind: how it keeps them ("like" the trained tensor, "factored" into a
    row and a column, in "32" or "8" bits by bitsandbytes). elementwise: a number's step depends on its own gradients alone, so that
    ZeRO may cut the tensors."""

    moments: int
    kind: str = "like"
    elementwise: bool = True

    @property
    def is_bitsandbytes(self) -> bool:
        return self.kind in ("32", "8")


OPTIMIZERS = {
    "adamw_torch": Optimizer(2),
    "adamw_torch_fused": Optimizer(2),
    "adafactor": Optimizer(1, "factored", elementwise=False),
    "sgd": Optimizer(0),
    "adagrad": Optimizer(1),
    "rmsprop": Optimizer(1),
    "adamw_8bit": Optimizer(2, "8", elementwise=False),
    "paged_adamw_8bit": Optimizer(2, "8", elementwise=False),
    "paged_adamw_32bit": Optimizer(2, "32", elementwise=False),
    "lion_8bit": Optimizer(1, "8", elementwise=False),
    "lion_32bit": Optimizer(1, "32", elementwise=False),
}


def optimizer_of(name: str | None, *, on_gpu: bool, deepspeed: bool) -> str:
    """transformers' name of the optimizer: the given one, or AdamW, fused on a GPU without DeepSpeed."""
    return name or ("adamw_torch_fused" if on_gpu and not deepspeed else "adamw_torch")


def check_optimizer(name: str | None, deepspeed: str | None) -> None:
    """Raise UserError if the optimizer cannot be used with `deepspeed`, the DeepSpeed config that the run uses, or None."""
    if name is None or deepspeed is None:
        return
    own = read_json(deepspeed).get("optimizer")
    if own is not None:
        kind = own.get("type") if isinstance(own, dict) else own
        raise UserError(
            f"--optimizer {name}: --deepspeed {deepspeed} has an optimizer of its own ({kind}); leave one of them out"
        )
    if not OPTIMIZERS[name].elementwise or name == "adamw_torch_fused":
        names = ", ".join(each for each, row in OPTIMIZERS.items() if row.elementwise and each != "adamw_torch_fused")
        raise UserError(
            f"--optimizer {name} does not go with --deepspeed {deepspeed}, which cuts the tensors that it works on; use {names}, or "
            "--deepspeed none"
        )


def check_installed(name: str | None) -> None:
    """Raise UserError if the optimizer is bitsandbytes' and that is not installed."""
    if name and OPTIMIZERS[name].is_bitsandbytes and find_spec("bitsandbytes") is None:
        raise UserError(
            f"--optimizer {name} needs the package bitsandbytes, which is not installed; install it, or use adamw_torch or adafactor"
        )


def state_bytes(name: str | None, *, numbers: int, size: int, sides: int, small: int = 0) -> int:
    """Bytes of the optimizer's state without the counts of steps.

    numbers, size: of the trained tensors, size in bytes. sides: rows and columns of all matrices, and the numbers of other tensors.
    small: numbers in tensors of less than SMALLEST.
    """
    row = OPTIMIZERS[name or "adamw_torch"]
    if row.kind == "factored":
        return 4 * sides
    if row.kind == "like":
        return row.moments * size
    if row.kind == "32":
        return row.moments * 4 * numbers
    large = numbers - small
    return row.moments * (large + 4 * (large // BLOCK) + 4 * small)
