"""The prepared state of a run of either kind, after everything is read and opened."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ..data.samples import Samples, Selection
from ..errors import UserError
from ..files import digest
from ..machine.devices import device, refuse_unmeant_cpu
from ..machine.processes import world
from ..methods import quantisation
from ..methods.attach import attach
from ..methods.names import start_of
from ..objective.settings import Objective
from .arguments import TrainArguments
from .checkpoints import START, initial_factors
from .deepspeed_config import used, zero_stage
from .held_out import HeldOut
from .order import FixedOrder
from .step_model import StepModel

logger = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """student: from `attach`. wrapper: the StepModel class that adds the objective. record: parts of run.json. callbacks: for
    the Trainer. task: for a classifier, the facts saved beside its weights. held_out: the rows that are not trained on, if any."""

    student: nn.Module
    tokenizer: object
    samples: Samples | Selection
    collate: Callable
    order: FixedOrder
    wrapper: Callable[..., StepModel]
    record: dict
    callbacks: tuple = ()
    task: dict | None = None
    held_out: HeldOut | None = None


def adapt(arguments: TrainArguments, model: nn.Module, objective: Objective, samples: int, **more) -> nn.Module:
    """The model as the run's method trains it. more: for a classifier, its head.

    A resumed run starts from the factors of its first start and decomposes nothing.
    """
    if arguments.weight_decay and arguments.start_form == "delta":
        logger.warning(
            "--weight_decay %g pulls the changes of the delta form towards the start, not the factors towards zero: this is not "
            "the trajectory of PiSSA",
            arguments.weight_decay,
        )
    refuse_unmeant_cpu(sum(parameter.numel() for parameter in model.parameters()), arguments.model, arguments.use_cpu)
    if arguments.quantize:
        quantisation.check_model(model)
    if quantisation.came_quantised(model) and zero_stage(arguments.deepspeed) == 3:
        raise UserError(
            f"--deepspeed {arguments.deepspeed}: ZeRO-3 cannot cut the packed weights of --model {arguments.model}; use ZeRO-2"
        )
    decomposes = start_of(arguments.method, arguments.init).startswith("pissa")
    kept = Path(arguments.output_dir) / "checkpoints" / START
    student = attach(
        model,
        arguments.method,
        rank=arguments.rank,
        alpha=arguments.alpha,
        rslora=arguments.rslora,
        modules_to_save=arguments.modules_to_save or (),
        **arguments.targets(),
        init=arguments.init,
        start_form=arguments.start_form,
        seed=arguments.seed,
        keep_initial=objective.uses_teacher(),
        dropout=arguments.dropout,
        total_steps=arguments.steps(samples),
        factors=initial_factors(kept) if arguments.resume and decomposes else None,
        decomposition_cache=arguments.decomposition_folder(),
        progress=arguments.progress,
        **more,
    )
    if arguments.quantize:
        quantisation.quantise(student)
    return student


def order_of(arguments: TrainArguments, samples: Samples | Selection) -> FixedOrder:
    """The order of the samples, the same for every method."""
    if not arguments.group_by_length:
        return FixedOrder(len(samples), arguments.seed)
    lengths = samples.lengths.tolist()
    return FixedOrder(len(samples), arguments.seed, lengths, arguments.micro_batch_size, arguments.effective_batch_size)


def order_hash(order: FixedOrder) -> str:
    """Identity of the order in which the first two epochs visit the samples."""
    return digest([order.order(epoch) for epoch in range(2)])


def to_device(model: nn.Module, arguments: TrainArguments) -> None:
    """Move the model to this process's GPU, if allowed and present: a decomposition takes minutes there, hours on a CPU. A quantised
    model is there already: transformers quantises on the GPU.

    Under ZeRO-3 the model stays in the host's memory, because it may be larger than one GPU: DeepSpeed moves the parts that
    each GPU keeps, and the decomposition one matrix at a time.
    """
    deepspeed = used(arguments.deepspeed, world())
    if zero_stage(deepspeed) < 3 and not quantisation.came_quantised(model):
        model.to(device(arguments.use_cpu))
