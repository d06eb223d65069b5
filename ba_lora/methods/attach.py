"""Method name → adapted model.

PEFT does the adapting if it has the method. Our own parts: the checks, BitFit and the bottlenecks (bottleneck.py), AdaLoRA's
penalty (adalora.py), the PiSSA start (pissa.py), a head that every method trains whole, and the frozen initial copy for the
teacher (teacher.py).
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoHaConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError, nearest
from ..models import beside_body, is_classifier
from ..models.pooling import pool_by_mask
from .adalora import adalora_config, leave_loss_alone, start_rank
from .bottleneck import add_bottlenecks
from .conv1d import to_linear
from .decomposition import Decomposer
from .names import FORMS, check_form, check_method, check_scaling, method_of, start_of
from .pissa import Factors, start_from_factors, start_from_triplets
from .quantisation import came_quantised, keep_packing
from .target_names import ALL_LINEAR, Targets, check_numbered
from .targets import (
    check_targets,
    chosen_layers,
    default_targets,
    head_pattern,
    is_within,
    left_out,
    linear_layers,
    names_for_peft,
    stacked_experts,
)
from .teacher import keep_initial_copy
from .tied import untie
from .whole_modules import whole_modules

logger = logging.getLogger(__name__)


class Attached(NamedTuple):
    """A record of what `attach` did to a model. as_linear: the Conv1D layers that became nn.Linear."""

    method: str = "full"
    rank: int = 0
    head: tuple[str, ...] = ()
    as_linear: tuple[str, ...] = ()


class Choice(NamedTuple):
    """The options of `attach` that say how the model is trained."""

    method: str
    rank: int
    alpha: float
    rslora: bool
    init: str | None
    form: str  # of a PiSSA start
    seed: int
    dropout: float
    total_steps: int | None


class Places(NamedTuple):
    """The options of `attach` that say what is trained: the layers to adapt, and the names of modules to train whole."""

    targets: Targets
    layers: Sequence[int] | None
    whole: tuple[str, ...]


def attach(
    model: nn.Module,
    method: str,
    *,
    rank: int,
    alpha: float,
    target_modules: Targets = None,
    layers: Sequence[int] | None = None,
    rslora: bool = False,
    modules_to_save: Sequence[str] = (),
    init: str | None = None,
    start_form: str = FORMS[0],
    seed: int = 0,
    keep_initial: bool | None = None,
    dropout: float = 0.0,
    head: Sequence[str] = (),
    total_steps: int | None = None,
    factors: Factors | None = None,
    decomposition_cache: str | Path | None = None,
    progress: bool = False,
) -> nn.Module:
    """Prepare `model` for training with `method` and return it; its forward stays that of transformers.

    method: one of METHODS, or pissa_niter_N (randomised SVD with N power iterations). rank, alpha: of the factors; the
    update is scaled by alpha/rank (AdaLoRA: by alpha/start_rank). For houlsby and pfeiffer, rank is the width of the
    bottleneck; full and bitfit (all biases) use neither. rslora: scale by alpha/√rank, for methods with LoRA's factors.
    target_modules: a list of names, or one text, a pattern or "all-linear", as PEFT takes them; None = every linear layer except
    the head. layers: numbers of the layers to adapt, for names; None = all. A target whose weight is tied to the embeddings gets
    its own copy. modules_to_save: names of modules that methods of PEFT train whole beside the factors, such as norms, and save
    with them. init: "pissa" (default) or "pissa_niter_N", and for ba-lora also "lora". start_form, of a PiSSA start: "residual"
    trains the factors beside W_res, "delta" (delta.py) their changes beside W, which may then come in 4 or 8 bits. seed: for the
    random starts.

    keep_initial: keep a frozen copy of the trained tensors, which the teacher needs. Methods with factors always keep it,
    the others only if this is True (for full fine-tuning it is a second model). dropout: on the adapter's input; not
    allowed with the residual form, because W_res + dropout(B0·A0) is not W. head: names of modules that are trained whole
    and never adapted; () = none, or for a sequence classifier every module outside the body. total_steps: optimiser steps
    of the training, for adalora.

    For a PiSSA start only: factors = {layer's name: (A0, B0)} of an earlier start, used instead of a decomposition;
    decomposition_cache: folder in which decompositions are kept and looked up; progress: show a bar. If torch.distributed
    is initialised, every process must call this, and they share the work. The `decomposition` attribute of the result says
    what was done.

    Raises UserError for an unknown method, a rank above a target matrix, or an invalid combination.
    """
    places = Places(target_modules, layers, tuple(modules_to_save))
    choice = Choice(method, rank, alpha, rslora, init, start_form, seed, dropout, total_steps)
    head = _check(model, choice, tuple(head))
    if method_of(method).files != "peft":
        return _attach_own(model, choice, places, head, keep_initial)
    return _attach_with_peft(model, choice, places, head, factors, decomposition_cache, progress)


def _attach_with_peft(
    model: nn.Module,
    choice: Choice,
    places: Places,
    head: tuple[str, ...],
    factors: Factors | None,
    cache: str | Path | None,
    progress: bool,
) -> nn.Module:
    """`model` with the layers of PEFT, at their start."""
    head += whole_modules(model, places.whole)
    start = _check_start(choice, factors)
    _refuse_quantised(model, choice.method, start, choice.form)
    named, places = places.targets, places._replace(targets=places.targets or default_targets(model, head))
    check_scaling(choice.method, choice.rslora)
    _check_layers(model, choice, places, head)
    as_linear = tuple(to_linear(model, head)) if choice.method == "loha" else ()  # PEFT's LoHa refuses Conv1D
    config = _peft_config(model, choice, places, start, head)
    adapted = _adapted(model, config, choice.seed, empty=start != "lora")
    if start != "lora":
        # for the export; the delta form is plain LoRA
        config.init_lora_weights = start if choice.form == "residual" else True
        _write_start(adapted, factors, Decomposer(start, choice.rank, choice.seed, cache), progress, choice.form)
    if not named:
        _say_what_is_left(adapted, head)
    _train_head(model, head)
    leave_loss_alone(adapted)
    keep_initial_copy(adapted)
    adapted.attached = Attached(choice.method, choice.rank, head, as_linear)
    return adapted


def _adapted(model: nn.Module, config: PeftConfig, seed: int, *, empty: bool) -> PeftModel:
    """`model` with PEFT's layers: random factors by the seed, or none yet if `empty`."""
    keep_packing(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config, low_cpu_mem_usage=empty)


def _check(model: nn.Module, choice: Choice, head: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the modules that are trained whole. UserError for one that the model lacks, and for options that conflict."""
    method, dropout = choice.method, choice.dropout
    check_method(method)
    if dropout and not method_of(method).dropout:
        raise UserError(f"dropout {dropout} does not apply to method '{method}'; set it to 0")
    check_form(choice.form, start_of(method, choice.init), method)
    head = head or (tuple(beside_body(model)) if is_classifier(model) else ())
    if is_classifier(model):
        pool_by_mask(model)
    modules = [name for name, _ in model.named_modules()]
    for name in head:
        if name not in modules:
            raise UserError(f"head module '{name}' is not in this {type(model).__name__}{nearest(name, modules)}")
    return head


def _check_start(choice: Choice, factors: Factors | None) -> str:
    """The start of the factors, see `start_of`. UserError if the other options do not go with it."""
    start = start_of(choice.method, choice.init)
    if factors is not None and start == "lora":
        raise UserError(
            f"factors are those of a PiSSA start, and method '{choice.method}' starts as 'lora'; leave them out"
        )
    if choice.rank < 1:
        raise UserError(f"rank must be at least 1, got {choice.rank}")
    if start != "lora" and choice.dropout and choice.form == "residual":
        raise UserError(
            f"dropout {choice.dropout} does not go with a PiSSA start, which would no longer equal the base; set it to 0, or take "
            "start_form delta"
        )
    return start


def _check_layers(model: nn.Module, choice: Choice, places: Places, head: tuple[str, ...]) -> None:
    """UserError if the method cannot adapt a target; a target that is tied to another layer gets a weight of its own."""
    rank, (targets, layers, _) = choice.rank, places
    check_numbered(targets, layers)
    if choice.method == "adalora":
        why = f" (adalora's at the start, for {rank} at the end)"
        check_targets(model, targets, start_rank(rank), head, why, layers)
    check_targets(model, targets, rank, head, layers=layers)
    chosen = chosen_layers(model, targets, head, layers)
    untie(model, chosen)
    if choice.method == "dora":
        _refuse_zero_rows(model, chosen)


def _write_start(
    adapted: PeftModel, factors: Factors | None, decomposer: Decomposer, progress: bool, form: str
) -> None:
    """Start from given factors, or decompose the weights and record what was done."""
    if factors is None:
        adapted.decomposition = start_from_triplets(adapted, decomposer, progress, form)
    else:
        start_from_factors(adapted, factors, form)


def _train_head(model: nn.Module, head: Sequence[str]) -> None:
    for name in head:
        model.get_submodule(name).requires_grad_(True)


def _refuse_quantised(model: nn.Module, method: str, start: str = "", form: str = FORMS[0]) -> None:
    """UserError if `model` is already quantised and `method` cannot train on it. Integers have no gradient and too little precision
    for a residual or a bottleneck. The delta form only reads the weights, which bitsandbytes can dequantise."""
    if not came_quantised(model):
        return
    if start.startswith("pissa") and form == "delta" and _is_of_bitsandbytes(model):
        return
    needs_numbers = method == "full" or method_of(method).is_bottleneck or start.startswith("pissa")
    if needs_numbers or getattr(model, "is_loaded_in_4bit", False):
        raise UserError(
            f"method '{method}' cannot train on this {type(model).__name__}, which is already quantised; give the "
            "full-precision model, with --quantize nf4 to train lora, pissa or ba-lora beside 4 bits, or, if bitsandbytes made it, "
            "train pissa or ba-lora with --start_form delta"
        )


def _is_of_bitsandbytes(model: nn.Module) -> bool:
    return str(getattr(model.quantization_method, "value", model.quantization_method)) == "bitsandbytes"


def _refuse_zero_rows(model: nn.Module, layers: Sequence[str]) -> None:
    """UserError if DoRA would divide by the norm of a zero row, such as that of the padding token in a tied head."""
    for name in layers:
        layer = model.get_submodule(name)
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight  # (out, in)
        if not weight.is_floating_point() or weight.is_meta:
            continue
        empty = (weight == 0).all(dim=1).nonzero().flatten().tolist()
        if empty:
            raise UserError(
                f"method 'dora' divides by the norm of each row of a weight, and row {empty[0]} of {name} is all zeros; leave "
                "that layer out of the target modules, or use lora"
            )


def _peft_config(model: nn.Module, choice: Choice, places: Places, start: str, head: tuple[str, ...]) -> PeftConfig:
    """PEFT's configuration of the method."""
    method, rank, alpha, layers = choice.method, choice.rank, choice.alpha, places.layers
    names = names_for_peft(model, places.targets, head, layers)
    options = {"target_modules": names or ALL_LINEAR, "exclude_modules": head_pattern(head)}
    options["layers_to_transform"] = layers and list(layers)
    # SEQ_CLS would wrap the head; export names it
    options["task_type"] = None if head and model.get_output_embeddings() is None else "CAUSAL_LM"
    if method == "loha":
        return LoHaConfig(r=rank, alpha=alpha, **options)
    transposed = any(isinstance(layer, Conv1D) for layer in linear_layers(model).values())
    options |= {"lora_dropout": choice.dropout, "fan_in_fan_out": transposed}
    if method == "adalora":
        return adalora_config(rank, alpha, choice.total_steps, **options)
    init = start == "lora"  # a PiSSA start writes its factors afterwards
    options |= {"use_dora": method == "dora", "use_rslora": choice.rslora}
    return LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=init, **options)


def _say_what_is_left(adapted: PeftModel, head: Sequence[str]) -> None:
    """Warn about experts that no adapter reaches, if there are any."""
    if not stacked_experts(adapted.get_base_model()):
        return
    left, frozen = left_out(adapted, head), (p for p in adapted.parameters() if not p.requires_grad)
    logger.warning(
        "experts are stacked in one tensor per layer, not in linear layers; adapted: %s; left as they are: %s, %s of %s parameters",
        ", ".join(sorted(adapted.peft_config["default"].target_modules)),
        ", ".join(left),
        f"{sum(left.values()):,}",
        f"{sum(parameter.numel() for parameter in frozen):,}",
    )


def _attach_own(
    model: nn.Module, choice: Choice, places: Places, head: tuple[str, ...], keep_initial: bool | None
) -> nn.Module:
    """`model`, in which full, bitfit, houlsby or pfeiffer trains what it trains, with the modules they need."""
    method = choice.method
    _refuse_quantised(model, method)
    for option, chosen in (("target_modules", places.targets), ("layers", places.layers)):
        if chosen and method_of(method).files == "own":
            named = chosen if isinstance(chosen, str) else " ".join(map(str, chosen))
            raise UserError(f"{option} {named} does not apply to method '{method}'; leave it out")
    if method == "full":
        model.requires_grad_(True)
    elif method == "bitfit":
        biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
        if not any(name.endswith("bias") and not is_within(name, head) for name, _ in model.named_parameters()):
            raise UserError(f"method 'bitfit' trains biases and this {type(model).__name__} has none; use lora")
        model.requires_grad_(False)
        for bias in biases:
            bias.requires_grad_(True)
    else:
        if choice.rank < 1:
            raise UserError(f"rank must be at least 1, got {choice.rank}")
        with torch.random.fork_rng():
            torch.manual_seed(choice.seed)
            add_bottlenecks(model, method, choice.rank, head)
    _train_head(model, head)
    if keep_initial:
        keep_initial_copy(model)
    model.attached = Attached(method, choice.rank, head)
    return model


def attached_to(model: nn.Module) -> Attached:
    """The record of what `attach` did to this model; an empty one for any other model."""
    return vars(model).get("attached", Attached())
