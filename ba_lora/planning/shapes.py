"""A run's model without weights: its parameters, the bytes it holds, the memory that passes through it. Needs no hub."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from ..data.glue import TASKS
from ..errors import UserError, short
from ..methods.attach import attach, attached_to
from ..methods.names import method_of
from ..methods.pissa import Factors
from ..methods.save import trained_parameters
from ..methods.target_names import Targets
from ..methods.targets import chosen_layers, default_targets, left_out, stacked_experts
from ..models import DTYPES, beside_body, errors_named, keep_soft_cap
from ..objective.settings import WEIGHTS, Objective
from ..training.arguments import TrainArguments
from ..training.model_numbers import read_numbers
from . import flops
from .memory import held, passing
from .standing import Held

ENCODERS = ("bert", "roberta", "deberta-v2")


def build(
    name: str,
    dtype: str,
    attn_implementation: str | None = None,
    outputs: int | None = None,
    layers: int | None = None,
):
    """The model `name` on the meta device: every tensor has its shape and dtype, none has storage.

    A causal language model, or an encoder's body; with `outputs`, a classifier with that many outputs; with `layers`, only its
    first layers. Its attention is that of `load_model`; for flash_attention_2, which no CPU has, one that keeps as much.
    """
    numbers, source = read_numbers(name)
    numbers = {key: value for key, value in numbers.items() if key not in ("dtype", "architectures")}
    kind = numbers.pop("model_type", "")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(
            f"{source}: transformers has no model type {short(kind)} of its own; such a model cannot be planned"
        )
    with errors_named(name, source, f"{source}: its sizes do not fit each other; correct it"):
        return _build(kind, numbers, dtype, attn_implementation, outputs, layers)


def _build(
    kind: str, numbers: dict, dtype: str, attn_implementation: str | None, outputs: int | None, layers: int | None
):
    """`build` from the sizes of an architecture. Raises whatever transformers raises for sizes that make no sense."""
    config = AutoConfig.for_model(kind, **numbers)
    if layers:
        keep_layers(config, layers)
    flash = attn_implementation == "flash_attention_2"
    kinds = AutoModel if kind in ENCODERS else AutoModelForCausalLM
    if outputs:
        kinds, config.num_labels = AutoModelForSequenceClassification, outputs
        config.use_cache = False  # as in load_classifier
        config.pad_token_id = config.pad_token_id or 0  # GPT-2 has none, but a batch needs one
    with torch.device("meta"):
        model = kinds.from_config(
            config,
            dtype=torch.float32 if dtype == "auto" else DTYPES[dtype],
            attn_implementation=None if flash else attn_implementation,
        )
    if not flash:
        keep_soft_cap(model, attn_implementation)
    return model


def keep_layers(config: PretrainedConfig, layers: int) -> None:
    """Reduce `config` to so many layers, including its per-layer entries."""
    depth = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers


class Sizes(NamedTuple):
    """The sizes of a model with its adapter."""

    parameters: int
    width: int  # of the hidden states
    trained: int
    targets: tuple[str, ...]
    left: dict[str, int]  # numbers in the matrices that are not adapted, by name
    adapted: tuple[tuple[int, int], ...]  # rows and columns of each matrix that has factors
    held: Held
    work: flops.Work
    layers: int
    alike: bool  # all layers after the first have parameters of the same shapes
    has_known_shapes: bool  # no shape depends on the data


class Shape(NamedTuple):
    """The options of a run that affect its sizes."""

    model: str
    dtype: str
    attn_implementation: str | None
    method: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...] | str | None
    dropout: float
    objective: Objective
    micro_batch: int
    length: int
    checkpointing: bool
    autocast: bool
    cached: str | None  # the form of the teacher's cache
    outputs: int | None  # of a classifier; None otherwise
    device: str  # "cuda", or "cpu" with --use_cpu
    teacher_share: float = 1.0
    form: str = "residual"  # of a PiSSA start
    layers: tuple[int, ...] | None = None  # those that are adapted; None = all
    optimizer: str | None = None
    modules_to_save: tuple[str, ...] = ()
    cache_entries: int = TrainArguments.teacher_cache_entries  # tokens of a row in a sketch


def job_of(arguments: TrainArguments) -> Shape:
    """The Shape of a run. Runs share a Shape if they differ only in settings that do not affect sizes (seed, learning rate, positive
    weights, PiSSA start in residual form)."""
    objective = arguments.objective()
    named = arguments.targets()
    targets = named["target_modules"]
    on = {name: float(getattr(objective, name) > 0) for name in WEIGHTS}
    return Shape(
        arguments.model,
        arguments.dtype,
        arguments.attn_implementation,
        _method_of_same_sizes(arguments),
        arguments.rank,
        arguments.alpha,
        tuple(targets) if isinstance(targets, list) else targets,
        arguments.dropout,
        replace(objective, **on),
        arguments.micro_batch_size,
        arguments.max_length,
        arguments.gradient_checkpointing,
        arguments.dtype == "bfloat16" and not arguments.use_cpu,
        arguments.teacher_cache_form if arguments.uses_teacher_cache() else None,
        (len(TASKS[arguments.task].labels) or 1) if arguments.task else None,
        "cpu" if arguments.use_cpu else "cuda",
        arguments.teacher_share,
        arguments.start_form,
        named["layers"],
        arguments.optimizer,
        tuple(arguments.modules_to_save or ()),
        arguments.teacher_cache_entries,
    )


def _method_of_same_sizes(arguments: TrainArguments) -> str:
    """A method whose model has the run's sizes: of those with LoRA's factors, one for each form."""
    if not method_of(arguments.method).is_lora:
        return arguments.method
    return "pissa" if arguments.start_form == "delta" else "lora"


def _adapted(job: Shape, layers: int | None = None) -> tuple[nn.Module, int]:
    """(the job's model on the meta device, adapted by the same `attach` from a start without SVD; its parameter count before)."""
    model = build(job.model, job.dtype, job.attn_implementation, job.outputs, layers)
    total = sum(parameter.numel() for parameter in model.parameters())
    head = beside_body(model) if job.outputs else ()
    targets = list(job.target_modules) if isinstance(job.target_modules, tuple) else job.target_modules
    numbers = job.layers if layers is None or job.layers is None else [each for each in job.layers if each < layers]
    with torch.device("meta"):
        model = attach(
            model,
            job.method,
            start_form=job.form,
            factors=_without_values(model, targets, head, job.rank, numbers) if job.form == "delta" else None,
            rank=job.rank,
            alpha=job.alpha,
            target_modules=targets,
            layers=numbers,
            modules_to_save=job.modules_to_save,
            keep_initial=job.objective.uses_teacher(),
            dropout=job.dropout,
            head=head,
            total_steps=1000,  # no size depends on it
        )
    return model, total


def _without_values(
    model: nn.Module, targets: Targets, head: Sequence[str], rank: int, layers: Sequence[int] | None
) -> Factors:
    """Factors of the right shapes for a PiSSA start, on the default device, instead of a decomposition."""
    names = chosen_layers(model, targets or default_targets(model, head), head, layers)
    weights = {name: model.get_submodule(name) for name in names}
    sides = {n: reversed(w.weight.shape) if isinstance(w, Conv1D) else w.weight.shape for n, w in weights.items()}
    return {name: (torch.empty(rank, width), torch.empty(out, rank)) for name, (out, width) in sides.items()}


def sizes(job: Shape) -> Sizes:
    """Parameters and standing bytes."""
    return _sizes(job._replace(micro_batch=1, length=1, checkpointing=False, cached=None, teacher_share=1.0))


@lru_cache(maxsize=256)
def _sizes(job: Shape) -> Sizes:
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
        held(model)._replace(optimizer=job.optimizer),
        flops.work_of(model),
        depth,
        _are_alike(model, depth),
        _has_known_shapes(model),
    )


@lru_cache(maxsize=256)
def passing_of(job: Shape) -> dict[str, int] | None:
    """The memory that passes through the job's model in a micro-batch, see `passing`; None if it cannot be found in advance.

    If all layers after the first are alike, models of two and three layers are measured, as each further layer adds the same.
    """
    size = sizes(job)
    if not size.has_known_shapes:
        return None
    if size.layers <= 3 or not size.alike:
        return _passing(job)
    two, three = (_passing(job, layers) for layers in (2, 3))
    return {name: two[name] + (size.layers - 2) * (three[name] - two[name]) for name in two}


def _passing(job: Shape, layers: int | None = None) -> dict[str, int]:
    model, _ = _adapted(job, layers)
    return passing(
        model,
        job.objective,
        job.micro_batch,
        job.length,
        checkpointing=job.checkpointing,
        autocast=job.autocast,
        cached=job.cached,
        cache_entries=job.cache_entries,
        device=job.device,
        teacher_share=job.teacher_share,
    )


def _are_alike(model: nn.Module, depth: int) -> bool:
    """Return True if the layers of `model` after the first (of `depth`) have parameters of the same shapes."""
    stacks = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == depth]
    kinds = {tuple(parameter.shape for parameter in layer.parameters()) for stack in stacks for layer in stack[1:]}
    return len(kinds) == 1


def _has_known_shapes(model) -> bool:
    """Return True if no shape depends on the data. Experts as one grouped product, transformers' default, meet this; the stand-in
    for tensors without storage knows that product only in bfloat16."""
    grouped = getattr(model.config.get_text_config(), "_experts_implementation", None) == "grouped_mm"
    return not stacked_experts(model) or (grouped and model.dtype == torch.bfloat16)
