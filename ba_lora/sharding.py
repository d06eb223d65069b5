"""Training split over processes: access to parameters that ZeRO-3 has split, and no FSDP."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest import mock

import torch
from torch import nn

from .errors import UserError


def gathered(parameters: Iterable[nn.Parameter]) -> AbstractContextManager:
    """Inside the block `parameters` have all their values; parameters that are already whole are unaffected.

    Every process has to enter, and may only read: changes made inside are lost. In a forward pass, take `parameters` from
    module.parameters(): module.weight alone makes DeepSpeed gather it and keep it to the end of that pass.
    """
    cut = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not cut:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters(cut)


def refuse_fsdp() -> None:
    """Raise UserError if accelerate was configured to use FSDP, whose shards `gathered` cannot handle."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UserError(
            "ACCELERATE_USE_FSDP is true and FSDP is not supported: on a CPU accelerate would run plain "
            "DistributedDataParallel instead, and on a GPU the result would not be gathered; "
            "use --deepspeed configs/deepspeed/zero3.json, or torchrun alone"
        )


@contextmanager
def only_tensors() -> Iterator[None]:
    """Make torch.load, which DeepSpeed calls without restrictions, read only tensors, plain values and DeepSpeed's own records."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with (
        mock.patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"),
        torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]),
    ):
        yield
