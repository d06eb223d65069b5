"""Check that the files of an adapter are complete, belong together, and fit a base model; PEFT itself only warns.

`check_files` needs only the files. `open_adapter` loads them into a model and compares everything that the model expects
with everything in the file. `check_for_base` does the same with a base that has shapes but no values, for software that
opens the adapter itself.
"""

import math
import warnings
from pathlib import Path

import torch
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from ..errors import RunFailure, UserError
from ..files import read_json
from ..folders.adapter_names import HINT, WEIGHTS, check_pairs

CONFIG = "adapter_config.json"
PICKLED = "adapter_model.bin"  # in adapters by others; PEFT reads only tensors from it
# PEFT restores these in another way.
SHARED = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")
PLACES = ("indices", "_size")  # integer tensors that VB-LoRA, SHiRA, FRoD and similar methods store


def read_config(file: Path) -> dict:
    """The JSON object in `file`. Raises UserError if the file holds anything else."""
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); copy the adapter again") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} holds a {type(config).__name__}, not an adapter's settings; copy the adapter again")
    return config


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises RunFailure if it cannot be read, and UserError if it is missing or holds
    numbers that are not finite or not real (some of PEFT's methods store integer indices, which are allowed)."""
    if not file.is_file():
        raise UserError(f"{file} is missing; copy the adapter again")
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise RunFailure(f"{file} cannot be read ({error}); copy the adapter again") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not any(part in name for part in PLACES):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{file}: {name} holds {kind} and not real numbers; copy the adapter again")
        if not torch.isfinite(tensor.float()).all():
            raise UserError(f"{file}: {name} holds numbers that are not finite; train again, or copy the adapter again")
    return tensors


def check_files(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a PEFT adapter folder, after all checks that need only the files; {} if it has only PICKLED.

    Raises UserError for an invalid config, for a factor without its counterpart, and for anything that `read_tensors`
    rejects; RunFailure for weights that cannot be read.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(f"{folder / CONFIG}: peft_type is {kind!r}, which PEFT does not know; copy the adapter again")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if kind == "LORA" and not (type(rank) is int and rank > 0 and type(alpha) in (int, float) and math.isfinite(alpha)):
        raise UserError(
            f"{folder / CONFIG}: r is {rank!r} and lora_alpha {alpha!r}; they must be a rank above 0 and a number"
        )
    if not (folder / WEIGHTS).is_file() and (folder / PICKLED).is_file():
        return {}
    tensors = read_tensors(folder / WEIGHTS)
    if not tensors:
        raise UserError(f"{folder / WEIGHTS} holds no tensors; copy the adapter again")
    check_pairs(tensors, folder / WEIGHTS)
    return tensors


def _check_scale(folder: Path) -> None:
    """UserError if a LoRA's rank and alpha scale its update differently from the run whose folder it is in."""
    file, run = folder / CONFIG, folder.parent / "run.json"
    config = read_config(file)
    if config["peft_type"] != "LORA" or folder.name != "adapter" or not run.is_file():
        return
    options = read_json(run).get("config") or {}
    if not options.get("rank") or not options.get("alpha"):
        return
    scale = _scale(config["lora_alpha"], config["r"], config.get("use_rslora"))
    expected = _scale(options["alpha"], options["rank"], options.get("rslora"))
    if not math.isclose(scale, expected, rel_tol=1e-6):
        raise UserError(
            f"{file}: rank and alpha scale the update by {scale:g}, and {run} says {expected:g}; they come from different runs, or "
            "one was changed"
        )


def _scale(alpha: float, rank: int, is_stabilised: bool | None) -> float:
    return alpha / (math.sqrt(rank) if is_stabilised else rank)


def open_adapter(model: nn.Module, folder: str | Path, **options) -> PeftModel:
    """`model` with the PEFT adapter in `folder` on it, in evaluation mode. options: PEFT's.

    Raises UserError if the adapter lacks a tensor that its config requires for this model, holds a tensor that belongs to no
    layer, or cannot be applied by PEFT; also whatever `check_files` raises.
    """
    tensors = check_files(folder)
    _check_scale(Path(folder))
    file = Path(folder) / (WEIGHTS if tensors else PICKLED)
    try:
        with warnings.catch_warnings():
            # PEFT looks up the layers of an AdaLoRA adapter by the names of their singular values
            warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # see tied.py
            # in two steps, as in PeftModel.from_pretrained, which does not report unused tensors
            config = PeftConfig.from_pretrained(str(folder), inference_mode=True)
            kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
            adapted = kind(model, config, **options)
            result = adapted.load_adapter(str(folder), adapted.active_adapter, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # PEFT raises many kinds, for example for a config that makes no sense
        raise UserError(f"{file} does not fit {_called(model)}: {_reason(error)}; {HINT}") from None
    lacking = [name for name in result.missing_keys if not any(part in name for part in SHARED)]
    if lacking:
        raise UserError(
            f"{file} does not fit {_called(model)}: it lacks {lacking[0].replace(f'.{adapted.active_adapter}', '')} "
            f"({len(lacking)} tensors are missing); {HINT}"
        )
    strange = [] if config.is_prompt_learning else sorted(result.unexpected_keys)
    if strange:
        what = "belong" if len(strange) > 1 else "belongs"
        raise UserError(
            f"{file} does not fit {_called(model)}: {strange[0]} ({len(strange)} tensors) {what} to no layer that "
            f"{CONFIG} names; {HINT}"
        )
    lacking = [name for name in _biases(adapted) if name not in tensors] if tensors else []
    if lacking:
        raise UserError(f"{file} does not fit {_called(model)}: it lacks {lacking[0]}; {HINT}")
    return adapted.eval()


def check_for_base(folder: str | Path, base: str, trust_remote_code: bool = False) -> None:
    """Reject an adapter that does not fit a causal language model, as `open_adapter` does, without reading the model's
    weights.

    base: anything that transformers opens, a folder or a hub id.
    """
    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    model.name_or_path = base
    open_adapter(model, folder, low_cpu_mem_usage=True)


def _biases(adapted: PeftModel) -> list[str]:
    """Names of the biases in the adapter; PEFT does not look for them."""
    if getattr(adapted.peft_config[adapted.active_adapter], "bias", "none") == "none":
        return []
    return [name for name in get_peft_model_state_dict(adapted, save_embedding_layers=False) if name.endswith("bias")]


def _called(model: nn.Module) -> str:
    name = getattr(model, "name_or_path", "")
    return f"the base {name}" if name else f"this {type(model).__name__}"


def _reason(error: Exception) -> str:
    """PEFT's reason in one line."""
    text = str(error)
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(error).__name__)
    return first[:300].rstrip(".")
