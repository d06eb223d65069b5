"""DeepSpeed's ZeRO: its stage, and parameters that stage 3 has cut into pieces over the processes made whole for a while."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from .errors import UserError


def gathered(parameters: Iterable[nn.Parameter]) -> AbstractContextManager:
    """Inside the block `parameters` have all their values; nothing happens to those that are whole.

    Every process has to enter, and may only read: what is written inside is forgotten. In a forward pass take `parameters`
    from module.parameters(): module.weight alone makes DeepSpeed gather it, and keep it to the end of that pass.
    """
    cut = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not cut:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters(cut)


def zero_stage(file: str | None) -> int:
    """The ZeRO stage that a DeepSpeed config names; 0 without one. UserError for a file that is no config."""
    if file is None:
        return 0
    try:
        return json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0)
    except (ValueError, AttributeError) as error:
        raise UserError(f"--deepspeed {file} is no DeepSpeed config ({error}); write one JSON object") from None


@contextmanager
def only_tensors() -> Iterator[None]:
    """Inside the block torch.load, which DeepSpeed calls with everything allowed, reads tensors, plain values and DeepSpeed's own records."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with (
        mock.patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"),
        torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]),
    ):
        yield
