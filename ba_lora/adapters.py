"""Method name → adapted model, adapted model → files, files → model.

PEFT does the adapting. What is ours: the checks, the frozen initial copy for the teacher (teacher.py), and an export that
turns a PiSSA adapter into plain LoRA for the original base: W_res + s·B·A − W = s·(B·A − B0·A0) = s·[B, −B0]·[A; A0].
"""

import copy
import logging
import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from .errors import UserError, choose, nearest
from .files import atomic_folder, read_json
from .models import load_model
from .teacher import COPY, initial_copy, initial_tensors, keep_initial_copy

logger = logging.getLogger(__name__)

METHODS = ("full", "lora", "pissa", "ba-lora")  # and pissa_niter_N
INITS = ("lora", "pissa")  # and pissa_niter_N
NITER = re.compile(r"pissa_niter_\d+")

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_DECODER = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")  # the paper's seven
# What is adapted when nothing is named, by transformers' model type; other types: all linear layers but the head, which is
# the same for the dense types here. transformers stacks the experts of a mixture in one tensor a layer, which is no linear
# layer: there only the attention is adapted, neither experts nor router.
DEFAULT_TARGETS = {
    **dict.fromkeys(("llama", "mistral", "gemma", "gemma3_text", "qwen2"), _DECODER),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    **dict.fromkeys(("mixtral", "qwen2_moe"), _ATTENTION),
    "deepseek_v2": ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
}


def check_method(method: str) -> str:
    """Return `method` when it is known: full, lora, pissa, pissa_niter_N, ba-lora. UserError otherwise."""
    return method if NITER.fullmatch(method) else choose("method", method, METHODS)


def start_of(method: str, init: str | None) -> str:
    """How the factors of `method` start: "lora" (B = 0) or "pissa", "pissa_niter_N" (the leading singular triplets)."""
    own = {"lora": "lora", "pissa": "pissa", "ba-lora": "pissa"}.get(method, method)
    if init is None or init == own:
        return own
    if method == "ba-lora":
        return init if NITER.fullmatch(init) else choose("init", init, INITS)
    if method == "pissa" and NITER.fullmatch(init):
        return init
    raise UserError(f"init '{init}' does not go with method '{method}', which starts as '{own}'; leave init out")


def attach(
    model: nn.Module,
    method: str,
    *,
    rank: int,
    alpha: float,
    target_modules: list[str] | None = None,
    init: str | None = None,
    seed: int = 0,
    keep_initial: bool | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """Prepare `model` for training with `method` and return it; its forward(input_ids, labels=...) stays transformers' own.

    method: full, lora, pissa, pissa_niter_N (randomised SVD with N power iterations), or ba-lora.
    rank, alpha: of the factors; the update is scaled by alpha/rank. target_modules: names as PEFT takes them; None is every
    linear layer but the head. init: "pissa" (default) or "pissa_niter_N", and for ba-lora "lora". seed: of the random starts.
    keep_initial: keep a frozen copy of the trained tensors, which the teacher needs; low-rank methods always keep it, full
    fine-tuning only when True (it is a second model). dropout: on the adapter's input; not with a PiSSA start, because
    W_res + dropout(B0·A0) is not W.

    Raises UserError for an unknown method, a rank above a target matrix, or a combination that cannot work.
    """
    check_method(method)
    if method == "full":
        model.requires_grad_(True)
        if keep_initial:
            keep_initial_copy(model)
        return model
    start = start_of(method, init)
    if rank < 1:
        raise UserError(f"rank must be at least 1, got {rank}")
    if start != "lora":
        if dropout:
            raise UserError(
                f"dropout {dropout} does not go with a PiSSA start, which would no longer equal the base; set it to 0"
            )
        if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None):
            raise UserError(
                "a PiSSA start decomposes full-precision weights and this base is quantised; load it unquantised"
            )
    target_modules = target_modules or default_targets(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules or "all-linear",
        init_lora_weights=True if start == "lora" else start,
        task_type="CAUSAL_LM",
    )
    _check_targets(model, target_modules, rank)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    keep_initial_copy(adapted)
    return adapted


def default_targets(model: nn.Module) -> list[str] | None:
    """The layers of `model` that DEFAULT_TARGETS names for its type; None for a type that it does not know."""
    known = DEFAULT_TARGETS.get(getattr(getattr(model, "config", None), "model_type", None), ())
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = [name for name in known if name in present] or None
    stacked = stacked_experts(model)
    if stacked:
        logger.warning(
            "the experts (%s, ...) are stacked tensors, no linear layers, and stay as they are; adapted: %s",
            stacked[0],
            ", ".join(targets or ["all linear layers"]),
        )
    return targets


def stacked_experts(model: nn.Module) -> list[str]:
    """Names of the tensors in which a mixture of experts holds its experts one upon another; none in a dense model."""
    return [name for name, parameter in model.named_parameters() if "expert" in name and parameter.dim() > 2]


def _check_targets(model: nn.Module, target_modules: list[str] | None, rank: int) -> None:
    """UserError when a target name matches nothing, or when `rank` is larger than a matrix it would factor."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for target in target_modules or ():
        if not any(name == target or name.endswith(f".{target}") for name in linears):
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise UserError(
                f"target module '{target}' matches no linear layer{nearest(target, known)} (there are: {', '.join(known)})"
            )
    for name, module in linears.items():
        chosen = (
            any(name == target or name.endswith(f".{target}") for target in target_modules)
            if target_modules
            else module is not head
        )
        if chosen and rank > min(module.weight.shape):
            shape = "×".join(str(size) for size in module.weight.shape)
            raise UserError(
                f"rank {rank} is larger than the target matrix {name} ({shape}); use at most {min(module.weight.shape)}"
            )


def trained_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def saved_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that `export` reads: of a low-rank method what is trained and its initial values, else all."""
    if isinstance(model, PeftModel):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return trained + list(initial_copy(model).copies)
    return [parameter for name, parameter in model.named_parameters() if not name.startswith(f"{COPY}.")]


def export(model: nn.Module, folder: str | Path) -> None:
    """Save what was trained; `folder` appears whole or not at all. Needs nothing but the model.

    Low-rank methods: plain PEFT LoRA for the original base (from a PiSSA start with rank and alpha doubled). Full
    fine-tuning: the whole model as save_pretrained writes it. safetensors only.
    """
    model = getattr(model, "student", model)  # an ObjectiveModel holds the adapted model as .student
    with atomic_folder(folder) as place:
        if isinstance(model, PeftModel):
            _export_lora(model, place)
        else:
            state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{COPY}.")}
            model.save_pretrained(place, state_dict=state)


def _export_lora(model: PeftModel, folder: Path) -> None:
    name = model.active_adapter
    config = copy.deepcopy(model.peft_config[name])
    # the embeddings are never resized here; left to itself PEFT asks the hub whether they were
    trained = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if str(config.init_lora_weights).startswith("pissa"):
        initial = {key.replace(f".{name}.", "."): value for key, value in initial_tensors(model).items()}
        for key, value in trained.items():
            if "lora_A" in key:
                trained[key] = torch.cat([value, initial[key].to(value)], dim=0)  # (2r, in)
            elif "lora_B" in key:
                trained[key] = torch.cat([value, -initial[key].to(value)], dim=1)  # (out, 2r)
        config.r, config.lora_alpha, config.init_lora_weights = 2 * config.r, 2 * config.lora_alpha, True
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # PEFT keeps a set: the same run would write another order
    if float(config.lora_alpha).is_integer():
        config.lora_alpha = int(config.lora_alpha)  # what other software declares it as
    if config.base_model_name_or_path is None:
        config.base_model_name_or_path = model.get_base_model().name_or_path or None
    config.save_pretrained(folder)
    tensors = {key: value.detach().cpu().contiguous() for key, value in trained.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def export_merged(
    adapter: str | Path, base: str, folder: str | Path, dtype: str = "float32", *, trust_remote_code: bool = False
) -> None:
    """Fold the exported adapter into its original base and save the result, which any software can open."""
    from .models import load_tokenizer

    merged = load(adapter, load_model(base, dtype, trust_remote_code=trust_remote_code)).merge_and_unload()
    with atomic_folder(folder) as place:
        merged.save_pretrained(place)
        load_tokenizer(base, trust_remote_code=trust_remote_code).save_pretrained(place)


def find_run(folder: str | Path) -> tuple[Path, str | None]:
    """(what was saved, name of its base model or None) of a run folder, an adapter folder or a model folder."""
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file():
        return folder, read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if (folder / "run.json").is_file():
        base = read_json(folder / "run.json").get("model")
        for name in ("adapter", "model"):
            if (folder / name).is_dir():
                return folder / name, base
        raise UserError(f"run folder {folder} has neither adapter/ nor model/: the run has not ended")
    if (folder / "config.json").is_file():
        return folder, None
    raise UserError(
        f"{folder} is no run folder (run.json), adapter folder (adapter_config.json) or model folder (config.json)"
    )


def load(
    folder: str | Path,
    base: str | nn.Module | None = None,
    dtype: str = "float32",
    *,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Open what any method saved, in evaluation mode: a run folder, its adapter/ or model/, or any model folder.

    base: the original model or its name; by default the one that the run or the adapter recorded. trust_remote_code: run
    Python code that comes with the model.
    """
    saved, recorded = find_run(folder)
    if not (saved / "adapter_config.json").is_file():
        return load_model(str(saved), dtype, trust_remote_code=trust_remote_code)
    base = base if base is not None else recorded
    if base is None:
        raise UserError(f"{saved} does not say which base model it belongs to; name it")
    model = load_model(base, dtype, trust_remote_code=trust_remote_code) if isinstance(base, str) else base
    return PeftModel.from_pretrained(model, str(saved)).eval()
