"""The settings that a DeepSpeed config may hold. Needs no large library, so that a bad config is refused at once."""

import json
from importlib.util import find_spec

from ..errors import UserError, short
from ..files import read_json, with_extra

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


def zero_stage(file: str | None) -> int:
    """The ZeRO stage in a DeepSpeed config; 0 without one. Raises UserError for a file that is not a config."""
    stage = (_read(file).get("zero_optimization") or {}).get("stage", 0) if file else 0
    if stage not in (0, 1, 2, 3):
        raise UserError(
            f"--deepspeed {file}: the stage of zero_optimization is {short(stage)}; it must be 0, 1, 2 or 3"
        )
    return stage


def used(file: str | None, processes: int) -> str | None:
    """`file` if a run with so many processes uses it, else None: one process has nothing to partition, it can only offload.

    Raises UserError for a file that is not a config.
    """
    return file if file and (processes > 1 or _offloads(file)) else None


def _offloads(file: str) -> bool:
    """Return True if the config keeps optimiser states or parameters in CPU memory or on a disk."""
    section = _read(file).get("zero_optimization") or {}
    parts = (section.get(name) for name in ("offload_optimizer", "offload_param"))
    return any(isinstance(part, dict) and part.get("device", "none") != "none" for part in parts)


def check_package(file: str | None) -> None:
    """Raise UserError if a run that uses this config cannot, because DeepSpeed is not installed."""
    if file and find_spec("deepspeed") is None:
        raise UserError(
            f"--deepspeed {file}: the package deepspeed is not installed; {with_extra('deepspeed')}, or add --deepspeed none "
            "to train with DistributedDataParallel"
        )


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
    kinds = {"zero_optimization?": "an object"}
    return read_json(file, kinds=kinds, remedy="give --deepspeed a DeepSpeed config, as configs/deepspeed/zero2.json")
