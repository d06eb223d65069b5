"""--compile: each layer of the model compiled by torch, after a comparison of the run's first micro-batch with and without.

A layer is compiled where it stands (`nn.Module.compile`), so that no tensor gets another name, and layers of one class share their
code. Teacher and student keep their own values, because `teacher` puts its tensors where compiled code looks for them. Compiled code
depends on the shapes that it meets first; every start of a run meets those of the same micro-batch, a resumed one too.
"""

import os
import shutil
import sys
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import UserError
from ..machine.devices import gpus
from ..machine.processes import world
from ..methods.quantisation import came_quantised
from ..methods.targets import stacked_experts
from ..objective.spectrum import searches
from .packing import COARSE, TOLERANCE
from .step_model import StepModel
from .trainer import BALoRATrainer

VARIANTS = 64  # of a layer: student, teacher and held-out rows, with and without a mask, of one sequence or more; torch's limit is 8


class Measured(NamedTuple):
    """A micro-batch at the start. gradients: (P,), the norm of each trained tensor's. consistency: None without a teacher."""

    loss: Tensor
    gradients: Tensor
    consistency: Tensor | None


def check_machine(use_cpu: bool) -> None:
    """Raise UserError if this run has several processes, or this machine has nothing that compiles."""
    if world() > 1:
        raise UserError(f"--compile was not tried with several processes and this run has {world()}; leave it out")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not gpus(use_cpu) and shutil.which(compiler) is None:
        raise UserError(
            f"--compile needs a C++ compiler on a CPU and '{compiler}' is not there; install it, name another one in CXX, or leave "
            "--compile out"
        )


def compile_layers(trainer: BALoRATrainer, backend: str = "inductor") -> None:
    """Compile the layers of the model that `trainer` is about to train.

    Raises UserError if torch cannot, if the first micro-batch then has another loss or gradient, or if the teacher and the student
    no longer agree at a start where they agree to the bit.
    """
    import torch._dynamo  # here, because it takes seconds

    student = trainer.objective_callback.model.student
    layers = [module for module in student.modules() if isinstance(module, GradientCheckpointingLayer)]
    _refuse_untried(student, layers)
    plain = _without_dropout(trainer)
    torch.compiler.reset()  # what earlier runs of this process compiled would count
    torch._dynamo.config.recompile_limit = VARIANTS
    began = time.perf_counter()
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    try:
        compiled = _measure(trainer)
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--compile: torch cannot compile {_named(layers)} ({reason}); leave it out") from error
    _refuse_differences(plain, compiled, TOLERANCE.get(student.dtype, COARSE))
    print(f"{len(layers)} layers compiled in {time.perf_counter() - began:.0f} s", flush=True)


def _named(layers: list[nn.Module]) -> str:
    return " and ".join(sorted({type(layer).__name__ for layer in layers}))


def _refuse_untried(student: nn.Module, layers: list[nn.Module]) -> None:
    """UserError for models that no comparison has covered."""
    for is_met, what in (
        (not layers, "no layers of transformers' kind"),
        (came_quantised(student), "quantised weights, which were not tried"),
        (bool(stacked_experts(student)), "experts, which were not tried"),
    ):
        if is_met:
            raise UserError(f"--compile: this model has {what}; leave it out")


def _without_dropout(trainer: BALoRATrainer) -> Measured:
    """The first micro-batch before the layers are compiled. UserError if it draws random numbers."""
    state = torch.cuda.get_rng_state if trainer.args.device.type == "cuda" else torch.get_rng_state
    before = state()
    measured = _measure(trainer)
    if not torch.equal(before, state()):
        raise UserError(
            "--compile: this model draws random numbers in training (its own dropout), and a compiled layer draws others; leave it out"
        )
    return measured


def _measure(trainer: BALoRATrainer) -> Measured:
    """The first micro-batch of the run, with every term that has a weight. Nothing of the training changes."""
    model: StepModel = trainer.objective_callback.model
    numbers = list(trainer._get_train_sampler())[: trainer.args.per_device_train_batch_size]
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[number] for number in numbers]))
    counted = dict(searches)
    model.train()
    model.begin_step(0, 1)
    model.lambdas = model.objective.maxima()
    try:
        with trainer.accelerator.autocast():
            loss = model(**batch).loss
        loss.backward()
        trained = [parameter for parameter in model.student.parameters() if parameter.requires_grad]
        norms = [torch.zeros(()) if p.grad is None else p.grad.float().norm().cpu() for p in trained]
        return Measured(loss.detach().float(), torch.stack(norms), model.sums.get("consistency"))
    finally:
        model.student.zero_grad(set_to_none=True)
        model.begin_step(0, 1)
        searches.update(counted)


def _refuse_differences(plain: Measured, compiled: Measured, most: float) -> None:
    """UserError if the compiled micro-batch differs by more than rounding, `most` of the loss and of the gradients' norm."""
    pairs = ((plain.loss, compiled.loss), (plain.gradients, compiled.gradients))
    difference = max(float((after - before).norm() / before.norm()) for before, after in pairs)
    if not difference <= most:
        raise UserError(
            f"--compile: the first micro-batch has another loss or gradient when compiled (they differ by {difference:.2g} of their "
            f"norm, at most {most:g} is rounding); leave it out"
        )
    if plain.consistency is not None and plain.consistency == 0 and compiled.consistency != 0:
        raise UserError(
            f"--compile: compiled teacher and student round differently (consistency {float(compiled.consistency):.2g} at the start, "
            "0 without); leave it out"
        )
