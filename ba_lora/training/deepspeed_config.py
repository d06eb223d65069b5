"""The settings that a DeepSpeed config may hold. Needs no large library, so that a bad config is refused at once."""

import json
from pathlib import Path

from ..errors import UserError

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
