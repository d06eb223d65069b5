"""Training split over processes: the allowed DeepSpeed settings, access to parameters that ZeRO-3 has split, and no FSDP."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from .errors import UserError

# {key that a DeepSpeed config must leave "auto": the option that fills it}. A dotted key applies only if its section exists.
LEFT_TO_OPTIONS = {
    "train_micro_batch_size_per_gpu": "--micro_batch_size",
    "gradient_accumulation_steps": "--effective_batch_size",
    "train_batch_size": "--effective_batch_size",
    "gradient_clipping": "--max_grad_norm",
    "bf16.enabled": "--dtype",
    "fp16.enabled": "--dtype",
    "optimizer.params.lr": "--learning_rate",
    "optimizer.params.weight_decay": "--weight_decay",
}


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


def zero_stage(file: str | None) -> int:
    """The ZeRO stage in a DeepSpeed config; 0 without one. Raises UserError for a file that is not a config."""
    return _read(file).get("zero_optimization", {}).get("stage", 0) if file else 0


def check_config(file: str) -> None:
    """Raise UserError if a DeepSpeed config overrides an option, or omits a key so that DeepSpeed would use its default."""
    config = _read(file)
    if "scheduler" in config:
        raise UserError(f"--deepspeed {file}: its scheduler would override --lr_scheduler; leave it out")
    for key, name in LEFT_TO_OPTIONS.items():
        section, _, _ = key.partition(".")
        if section != key and section not in config:
            continue
        value = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value != "auto":
            raise UserError(f'--deepspeed {file}: {key} is {json.dumps(value)}; write "auto", so that {name} fills it')


def _read(file: str) -> dict:
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        config.get("zero_optimization", {}).get("stage")
    except (ValueError, AttributeError) as error:
        raise UserError(f"--deepspeed {file} is not a DeepSpeed config ({error}); write one JSON object") from None
    return config


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
