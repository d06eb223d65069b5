"""A run's model without weights: its parameters, the bytes it holds, what passes through it. Needs no weights and no hub."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from ..data.glue import TASKS
from ..errors import UserError, nearest
from ..methods.attach import attached_to
from ..methods.names import NITER
from ..methods.save import attach, stacked_experts, trained_parameters
from ..methods.targets import left_out
from ..models import DTYPES, beside_body, keep_soft_cap
from ..objective.settings import Objective
from ..tiny import MODEL_DIR
from ..training.arguments import TrainArguments
from . import flops
from .memory import Held, held, passing

NUMBERS = Path(__file__).resolve().parents[2] / "configs" / "models"
ENCODERS = ("bert", "roberta", "deberta-v2")


def read_numbers(name: str) -> tuple[dict, str]:
    """(numbers of an architecture as AutoConfig.for_model takes them, where they come from).

    name: 'tiny', a folder with a config.json, or what a file of configs/models has as its name, `hub` or `package`.
    Raises UserError when there are none.
    """
    folder = MODEL_DIR if name == "tiny" else Path(name)
    if (folder / "config.json").is_file():
        source = "the embedded model" if name == "tiny" else f"{name}/config.json"
        return json.loads((folder / "config.json").read_text(encoding="utf-8")), source
    known = {}
    for file in sorted(NUMBERS.glob("*.yaml")):
        described = yaml.safe_load(file.read_text(encoding="utf-8"))
        names = {file.stem, described["hub"], described.get("package", described["hub"])}
        if name.lower() in {each.lower() for each in names}:
            return described["numbers"], f"configs/models/{file.name}"
        known |= dict.fromkeys(names)
    raise UserError(
        f"no numbers of the model '{name}' are here{nearest(name, known)}; give a folder that holds its config.json, "
        "or describe it in configs/models"
    )


def build(
    name: str,
    dtype: str,
    attn_implementation: str | None = None,
    outputs: int | None = None,
    layers: int | None = None,
):
    """The model `name` on the meta device: every tensor has its shape and dtype, none has storage.

    A causal language model, or an encoder's body; with `outputs` a classifier of so many; with `layers` only the first of them.
    Its attention is the one that `load_model` gives it; of flash_attention_2, which no processor has, one that keeps as much.
    """
    numbers, source = read_numbers(name)
    numbers = {key: value for key, value in numbers.items() if key not in ("dtype", "architectures")}
    kind = numbers.pop("model_type", "")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"{source}: transformers has no model type '{kind}' of its own; such a model cannot be planned")
    config = AutoConfig.for_model(kind, **numbers)
    if layers:
        _keep_layers(config, layers)
    flash = attn_implementation == "flash_attention_2"
    kinds = AutoModel if kind in ENCODERS else AutoModelForCausalLM
    if outputs:
        kinds, config.num_labels = AutoModelForSequenceClassification, outputs
        config.use_cache = False  # as load_classifier has it
        config.pad_token_id = config.pad_token_id or 0  # GPT-2 has none, and a batch needs one
    with torch.device("meta"):
        model = kinds.from_config(
            config,
            dtype=torch.float32 if dtype == "auto" else DTYPES[dtype],
            attn_implementation=None if flash else attn_implementation,
        )
    if not flash:
        keep_soft_cap(model, attn_implementation)
    return model


def _keep_layers(config: PretrainedConfig, layers: int) -> None:
    """Make `config` one of so many layers, in what it says of each layer too."""
    depth = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers


class Sizes(NamedTuple):
    """Of a model with its adapter."""

    parameters: int
    width: int  # of the hidden states
    trained: int
    targets: tuple[str, ...]
    left: dict[str, int]  # numbers in the matrices that are not adapted, by name
    adapted: tuple[tuple[int, int], ...]  # rows and columns of each matrix with factors
    held: Held
    work: flops.Work
    layers: int
    alike: bool  # the layers after the first, in the shapes of their parameters
    has_known_shapes: bool  # none depends on the data


class Job(NamedTuple):
    """What of a run's options its sizes depend on."""

    model: str
    dtype: str
    attn_implementation: str | None
    method: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...] | None
    dropout: float
    objective: Objective
    micro_batch: int
    length: int
    checkpointing: bool
    autocast: bool
    cached: bool
    outputs: int | None  # of a classifier


def job_of(arguments: TrainArguments) -> Job:
    """Runs that differ in what no size depends on, as seeds, rates, positive weights or a PiSSA start, have the same."""
    objective, method = arguments.objective(), arguments.method
    on = {name: float(getattr(objective, name) > 0) for name in ("lambda1", "lambda2", "lambda3")}
    return Job(
        arguments.model,
        arguments.dtype,
        arguments.attn_implementation,
        "lora" if method in ("pissa", "ba-lora") or NITER.fullmatch(method) else method,
        arguments.rank,
        arguments.alpha,
        tuple(arguments.target_modules) if arguments.target_modules else None,
        arguments.dropout,
        replace(objective, **on),
        arguments.micro_batch_size,
        arguments.max_length,
        arguments.gradient_checkpointing,
        arguments.dtype == "bfloat16" and not arguments.use_cpu,
        arguments.uses_teacher_cache(),
        (len(TASKS[arguments.task].labels) or 1) if arguments.task else None,
    )


def _adapted(job: Job, layers: int | None = None) -> tuple[nn.Module, int]:
    """(the job's model on the meta device, adapted by the same `attach`, from a start without SVD; its parameters before)."""
    model = build(job.model, job.dtype, job.attn_implementation, job.outputs, layers)
    total = sum(parameter.numel() for parameter in model.parameters())
    with torch.device("meta"):
        model = attach(
            model,
            job.method,
            rank=job.rank,
            alpha=job.alpha,
            target_modules=list(job.target_modules) if job.target_modules else None,
            keep_initial=job.objective.lambda1 > 0,
            dropout=job.dropout,
            head=beside_body(model) if job.outputs else (),
            total_steps=1000,  # no size depends on it
        )
    return model, total


def sizes(job: Job) -> Sizes:
    """Parameters and bytes of what stands."""
    return _sizes(job._replace(micro_batch=1, length=1, checkpointing=False, cached=False))


@lru_cache(maxsize=256)
def _sizes(job: Job) -> Sizes:
    model, total = _adapted(job)
    width = model.get_input_embeddings().weight.shape[1]
    targets, left = (), {}
    if hasattr(model, "peft_config"):
        targets = tuple(sorted(model.peft_config["default"].target_modules))
        left = left_out(model, attached_to(model).head)
    adapted = tuple(tuple(each.weight.shape) for name, each in model.named_modules() if name.endswith("base_layer"))
    depth = model.config.get_text_config().num_hidden_layers
    return Sizes(
        total,
        width,
        trained_parameters(model),
        targets,
        left,
        adapted,
        held(model),
        flops.work_of(model),
        depth,
        _are_alike(model, depth),
        _has_known_shapes(model),
    )


@lru_cache(maxsize=256)
def passing_of(job: Job) -> dict[str, int] | None:
    """What passes through the job's model in a micro-batch, see `passing`; None where it cannot be found beforehand.

    Found on models of two and three layers where all but the first are alike, as each further one adds the same.
    """
    size = sizes(job)
    if not size.has_known_shapes:
        return None
    if size.layers <= 3 or not size.alike:
        return _passing(job)
    two, three = (_passing(job, layers) for layers in (2, 3))
    return {name: two[name] + (size.layers - 2) * (three[name] - two[name]) for name in two}


def _passing(job: Job, layers: int | None = None) -> dict[str, int]:
    model, _ = _adapted(job, layers)
    return passing(
        model,
        job.objective,
        job.micro_batch,
        job.length,
        checkpointing=job.checkpointing,
        autocast=job.autocast,
        cached=job.cached,
    )


def _are_alike(model: nn.Module, depth: int) -> bool:
    """Whether all of the `depth` layers of `model` but the first have parameters of the same shapes."""
    stacks = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == depth]
    kinds = {tuple(parameter.shape for parameter in layer.parameters()) for stack in stacks for layer in stack[1:]}
    return len(kinds) == 1


def _has_known_shapes(model) -> bool:
    """Whether no shape depends on the data. So it is with experts that are one grouped product, transformers' default; what
    stands in for tensors without storage knows that product in bfloat16 only."""
    grouped = getattr(model.config.get_text_config(), "_experts_implementation", None) == "grouped_mm"
    return not stacked_experts(model) or (grouped and model.dtype == torch.bfloat16)
