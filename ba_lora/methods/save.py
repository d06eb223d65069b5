"""Save an adapted model, and load it again. attach.py puts a method into a model.

The export turns a PiSSA adapter into plain LoRA for the original base: W_res + s·B·A − W = s·(B·A − B0·A0) = s·[B, −B0]·[A;
A0], and in the delta form s·[B0 + ΔB, ΔB]·[ΔA; A0]. The scaling s = alpha/r (alpha/√r if the config is rank-stabilised) is kept.
"""

import copy
import logging
import math
from functools import lru_cache
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn

from ..errors import UserError
from ..files import read_json, write_json
from ..folders import checksums
from ..folders.kinds import OF_WEIGHTS, SAVED, WEIGHTS, saved_in
from ..folders.ownership import replaced
from ..folders.places import TASK_FILE
from ..models import is_classifier, load_classifier, load_model, stock_name
from ..models.generation_config import repair_generation_config
from ..models.pooling import agree_on_padding, pool_by_mask
from .adalora import effective_ranks, leave_loss_alone
from .adapter_files import CONFIG, check_files, open_adapter, read_config, read_tensors
from .attach import Attached, attach, attached_to
from .conv1d import to_conv1d, to_linear
from .delta import as_lora, delta_layers
from .names import METHODS, method_of
from .targets import is_within
from .teacher import COPY, initial_tensors, kept_parameters
from .tied import untie

logger = logging.getLogger(__name__)

OWN_METHODS = tuple(name for name, each in METHODS.items() if each.files == "own")
OWN_FILE = "ba_lora.json"  # how to open an adapter that PEFT cannot open alone
OWN_WEIGHTS = "adapter.safetensors"
# Key of ba_lora.json and, for PEFT's adapters, of checksums.json: the base as --model takes it, on any machine. adapter_config.json
# instead holds what PEFT can open alone, which for a local or embedded model is a path of this machine.
BASE = "base_model"


def trained_parameters(model: nn.Module) -> int:
    """Number of trainable values, including the head."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def saved_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that `export` reads: the trained ones, plus their initial values for factor methods; for full
    fine-tuning, all."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if isinstance(model, PeftModel):
        return trained + kept_parameters(model)
    if method_of(attached_to(model).method).files == "own":
        return trained
    return [parameter for name, parameter in model.named_parameters() if not name.startswith(f"{COPY}.")]


def export(model: nn.Module, folder: str | Path, task: dict | None = None, *, tensors: bool = True) -> None:
    """Save what was trained; `folder` appears complete or not at all. Needs only the model. Writes only safetensors.

    LoRA, PiSSA, BA-LoRA: plain PEFT LoRA for the original base (rank and alpha are doubled after a PiSSA start), which
    AutoPeftModelForCausalLM.from_pretrained opens alone on this machine. LoHa, DoRA,
    AdaLoRA: PEFT's own format; for AdaLoRA only the remaining triplets. BitFit, Houlsby, Pfeiffer: the trained tensors and
    ba_lora.json. Full fine-tuning: the whole model as save_pretrained writes it. The head is always saved. A classifier also
    gets task.json: "labels" (names, or null for a regression), "head", and the content of `task`. Raises UserError for a
    folder that is neither empty nor an earlier export by this project: it is not replaced. tensors: False writes everything
    except the weights, as a test that saving will work.
    """
    model = getattr(model, "student", model)  # an ObjectiveModel holds the adapted model as .student
    attached = attached_to(model)
    files = method_of(attached.method).files
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    with replaced(folder, "weights", WEIGHTS) as place:
        if isinstance(model, PeftModel):
            _export_peft(model, place, attached.head, tensors)
        elif files != "own":
            state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{COPY}.")}
            save_whole(model, place, state if tensors else {})
        elif tensors:
            trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
            _save(trained, place / OWN_WEIGHTS)
        if files == "own" or attached.as_linear:
            write_json(place / OWN_FILE, attached._asdict() | {BASE: whole.name_or_path or None})
        if is_classifier(whole) or task:
            regression = whole.config.problem_type == "regression"
            labels = None if regression else [whole.config.id2label[i] for i in range(whole.config.num_labels)]
            write_json(place / TASK_FILE, {"labels": labels, "head": list(attached.head)} | (task or {}))
        named = {BASE: whole.name_or_path} if isinstance(model, PeftModel) and whole.name_or_path else {}
        checksums.write(place, **OF_WEIGHTS, **named)


def save_whole(model: nn.Module, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """save_pretrained, with a generation config that can be saved. state: the tensors; by default all of the model."""
    if changed := repair_generation_config(model):
        _say(f"the generation config of {model.name_or_path} contradicts itself and is saved with changes: {changed}")
    model.save_pretrained(folder, state_dict=state)


@lru_cache
def _say(line: str) -> None:
    """Warn once: the base of a merge is opened twice."""
    logger.warning(line)


def _export_peft(model: PeftModel, folder: Path, head: tuple[str, ...], tensors: bool = True) -> None:
    name = model.active_adapter
    if tensors and hasattr(model.peft_config[name], "rank_pattern") and hasattr(model.peft_config[name], "target_r"):
        model.peft_config[name].rank_pattern = effective_ranks(model)
    config = copy.deepcopy(model.peft_config[name])
    trained = _tensors_for_the_original_base(model, config, name)
    base = model.get_base_model()
    if head:
        # as PEFT writes and reads the modules that are trained whole
        config.task_type, config.modules_to_save, config.exclude_modules = (
            config.task_type or "SEQ_CLS",
            list(head),
            None,
        )
        heads = ((key, value) for key, value in base.named_parameters() if is_within(key, head))
        trained |= {f"base_model.model.{key}": value for key, value in heads}
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # PEFT keeps a set, whose order differs between equal runs
    for scale in ("lora_alpha", "alpha"):
        if hasattr(config, scale) and float(getattr(config, scale)).is_integer():
            setattr(config, scale, int(getattr(config, scale)))  # other software expects an integer
    config.base_model_name_or_path = stock_name(config.base_model_name_or_path or base.name_or_path or None)
    config.save_pretrained(folder)
    if tensors:
        _save(trained, folder / "adapter_model.safetensors")


def _tensors_for_the_original_base(model: PeftModel, config: PeftConfig, adapter: str) -> dict[str, torch.Tensor]:
    """{name in the adapter's file: tensor}, without the head. After a PiSSA start they are plain LoRA of twice the rank, and `config`
    is changed to match."""
    if delta_layers(model):
        _double_rank(model, config, adapter)
        return as_lora(model, adapter)
    # the embeddings are never resized here; by default PEFT asks the hub whether they were
    trained = get_peft_model_state_dict(model, model.state_dict(), adapter_name=adapter, save_embedding_layers=False)
    if not str(getattr(config, "init_lora_weights", "")).startswith("pissa"):
        return trained
    _double_rank(model, config, adapter)
    initial = {key.replace(f".{adapter}.", "."): value for key, value in initial_tensors(model).items()}
    for key, value in trained.items():
        if "lora_A" in key:
            trained[key] = torch.cat([value, initial[key].to(value)], dim=0)  # (2r, in)
        elif "lora_B" in key:
            trained[key] = torch.cat([value, -initial[key].to(value)], dim=1)  # (out, 2r)
    return trained


def _double_rank(model: PeftModel, config: LoraConfig, adapter: str) -> None:
    """Give `config` twice the rank and the alpha that keeps the scaling of the trained layers: alpha doubles, or with
    rank-stabilised scaling alpha/√r grows by √2."""
    scaling = next(layer.scaling[adapter] for layer in model.modules() if isinstance(layer, LoraLayer))
    config.r, config.init_lora_weights = 2 * config.r, True
    alpha = scaling * (math.sqrt(config.r) if config.use_rslora else config.r)
    config.lora_alpha = round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, file, metadata={"format": "pt"})


def export_merged(
    adapter: str | Path, base: str, folder: str | Path, dtype: str = "float32", *, trust_remote_code: bool = False
) -> None:
    """Fold the exported adapter into its original base and save the result, which any software can open.

    Raises UserError for bottlenecks, which cannot be expressed as a change of the base's weights, and for a folder as in
    `export`.
    """
    from ..models import load_tokenizer

    merged = load(adapter, base, dtype, trust_remote_code=trust_remote_code)
    attached = attached_to(merged)
    if method_of(attached.method).is_bottleneck:
        raise UserError(f"an adapter of method '{attached.method}' adds layers and cannot be folded into {base}")
    if isinstance(merged, PeftModel):
        untie(merged.get_base_model(), _adapted_layers(merged))  # otherwise a merge into one layer would change another
        merged = merged.merge_and_unload()
        to_conv1d(merged, attached.as_linear)
    tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
    if is_classifier(merged):
        agree_on_padding(merged, tokenizer)
    with replaced(folder, "weights", WEIGHTS) as place:
        save_whole(merged, place)
        tokenizer.save_pretrained(place)
        if is_classifier(merged):
            write_json(place / TASK_FILE, read_json(find_run(adapter)[0] / TASK_FILE))
        checksums.write(place, **OF_WEIGHTS)


def _adapted_layers(adapted: PeftModel) -> list[str]:
    """Names of the base layers under the factors."""
    layers = adapted.get_base_model().named_modules()
    return [f"{name}.base_layer" for name, layer in layers if isinstance(layer, BaseTunerLayer)]


def find_run(folder: str | Path) -> tuple[Path, str | None]:
    """(the saved folder, name of its base model or None) for a run folder, an adapter folder or a model folder.

    The saved files are verified against their checksums, if there are any. Raises UserError for any other folder,
    DamagedFile for a damaged one.
    """
    found = _find_run(Path(folder))
    checksums.verify_model(found[0])
    return found


def _find_run(folder: Path) -> tuple[Path, str | None]:
    for name, key in ((CONFIG, "base_model_name_or_path"), (OWN_FILE, BASE)):
        if (folder / name).is_file():
            base = read_config(folder / name).get(key)
            if name == CONFIG and (folder / checksums.FILE).is_file():
                base = read_json(folder / checksums.FILE, kinds={f"{BASE}?": "a text"}).get(BASE, base)
            if not isinstance(base, str | None):
                raise UserError(f"{folder / name}: {key} is {base!r}, not the name of a model; copy the adapter again")
            return folder, base
    if (folder / "run.json").is_file():
        return saved_in(folder), read_json(folder / "run.json").get("model")
    if (folder / "config.json").is_file():
        return folder, None
    raise UserError(
        f"{folder} is not a run folder (run.json), adapter folder (adapter_config.json) or model folder (config.json)"
    )


def read_task(saved: Path) -> dict | None:
    """task.json of the saved result of a classification run; None if there is none.

    Raises UserError if it cannot be read, or does not belong to the run whose folder it is in.
    """
    file, run = saved / TASK_FILE, saved.parent / "run.json"
    recorded = read_json(run).get("task") if saved.name in SAVED and run.is_file() else None
    if not file.is_file():
        if recorded:
            raise UserError(f"{file}, which names the classifier's outputs, is missing; copy the whole run folder")
        return None
    try:
        task = read_json(file)
        labels = task["labels"]
        fits = labels is None or (isinstance(labels, list) and labels and all(isinstance(name, str) for name in labels))
    except (OSError, ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise UserError(f"{file} is damaged: it does not name the classifier's outputs; copy the run folder again")
    if recorded:
        differing = [key for key in ("name", "labels", "head") if task.get(key) != recorded.get(key, task.get(key))]
        if differing:
            key = differing[0]
            raise UserError(
                f"{file} says {key} {task.get(key)} and {run} says {recorded.get(key)}; they come from different runs, or one "
                "was changed"
            )
    return task


def load(
    folder: str | Path,
    base: str | nn.Module | None = None,
    dtype: str = "float32",
    *,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Open the saved result of any method, in evaluation mode: a run folder, its adapter/ or model/, or any model folder.

    base: the original model or its name; by default the one that the run or the adapter recorded. A folder with a task.json
    is a classifier, and so is its base. trust_remote_code: run Python code that comes with the model.
    """
    saved, recorded = find_run(folder)
    task = read_task(saved)
    own = _read_own(saved)

    def opened(name: str, **more) -> nn.Module:
        if task is None:
            return load_model(name, dtype, trust_remote_code=trust_remote_code)
        return load_classifier(name, task["labels"], dtype=dtype, trust_remote_code=trust_remote_code, **more)[0]

    if not own and not (saved / CONFIG).is_file():
        return opened(str(saved))
    base = base if base is not None else recorded
    if base is None:
        raise UserError(f"{saved} does not say which base model it belongs to; name it")
    check_saved(saved)
    model = opened(base, head_follows=True) if isinstance(base, str) else base
    if is_classifier(model):
        pool_by_mask(model)
    if own.get("method") in OWN_METHODS:
        return _load_own(model, own, saved / OWN_WEIGHTS)
    as_linear = tuple(to_linear(model, own["head"])) if own.get("as_linear") else ()
    adapted = open_adapter(model, saved)
    untie(adapted.get_base_model(), _adapted_layers(adapted), refuse=False)
    leave_loss_alone(adapted)
    adapted.attached = Attached(own.get("method", "lora"), own.get("rank", 0), tuple(own.get("head", ())), as_linear)
    return adapted


def check_saved(folder: Path) -> None:
    """Reject an adapter folder that its own files show to be damaged; see adapter_files.py. A model folder passes."""
    if _read_own(folder).get("method") in OWN_METHODS:
        read_tensors(folder / OWN_WEIGHTS)
    elif (folder / CONFIG).is_file():
        check_files(folder)


def _read_own(saved: Path) -> dict:
    """ba_lora.json of an adapter; {} if there is none. UserError if its content is invalid."""
    if not (saved / OWN_FILE).is_file():
        return {}
    own = read_config(saved / OWN_FILE)
    lists = [own.get("head"), own.get("as_linear")]
    names = all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in lists)
    known = own.get("method") in OWN_METHODS or (isinstance(own.get("method"), str) and (saved / CONFIG).is_file())
    if not names or not known or type(own.get("rank")) is not int:
        raise UserError(
            f"{saved / OWN_FILE} is damaged: it does not say how to open the adapter; copy the adapter again"
        )
    return own


def _load_own(model: nn.Module, own: dict, file: Path) -> nn.Module:
    """`model` with the saved tensors of BitFit or the bottlenecks. UserError if the tensors belong to another model."""
    model = attach(model, own["method"], rank=own["rank"], alpha=1, head=own["head"])
    trained, saved = {n: p for n, p in model.named_parameters() if p.requires_grad}, read_tensors(file)
    wrong = sorted(trained.keys() ^ saved.keys()) or [n for n in saved if saved[n].shape != trained[n].shape]
    if wrong:
        raise UserError(f"{file}: {wrong[0]} does not fit the base model; name the base that the adapter belongs to")
    with torch.no_grad():
        for name, value in saved.items():
            trained[name].copy_(value)
    return model.requires_grad_(False).eval()
