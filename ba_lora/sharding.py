"""Training cut over processes: what a DeepSpeed config may say, parameters that ZeRO-3 has cut made whole for a while, no FSDP."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from .errors import UserError

# {what a DeepSpeed config must leave "auto": the option that fills it}. Of a key with a dot, where its section is there.
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
    return _read(file).get("zero_optimization", {}).get("stage", 0) if file else 0


def check_config(file: str) -> None:
    """UserError where a DeepSpeed config says itself what the options say, or is silent: DeepSpeed would take its default."""
    config = _read(file)
    if "scheduler" in config:
        raise UserError(f"--deepspeed {file}: its scheduler would replace --lr_scheduler; leave it out")
    for key, name in LEFT_TO_OPTIONS.items():
        section, _, _ = key.partition(".")
        if section != key and section not in config:
            continue
        value = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value != "auto":
            raise UserError(f'--deepspeed {file}: {key} is {json.dumps(value)}; write "auto", {name} fills it')


def _read(file: str) -> dict:
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        config.get("zero_optimization", {}).get("stage")
    except (ValueError, AttributeError) as error:
        raise UserError(f"--deepspeed {file} is no DeepSpeed config ({error}); write one JSON object") from None
    return config


def refuse_fsdp() -> None:
    """UserError when accelerate was told to use FSDP, whose pieces `gathered` does not know."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UserError(
            "ACCELERATE_USE_FSDP is true and FSDP is not supported: on a processor accelerate would run plain "
            "DistributedDataParallel in its place, and on a GPU the result would not be gathered; "
            "use --deepspeed configs/deepspeed/zero3.json, or torchrun alone"
        )


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
