"""The callback around each optimiser step: the weights, the check of the terms, metrics.jsonl."""

import json
import logging
import time
from pathlib import Path

import torch
from torch import distributed
from transformers import TrainerCallback

from ..errors import DamagedFile, RunFailure, UserError
from ..files import atomic_write, check_kinds, unsealed
from ..methods.adalora import after_step
from ..objective.settings import TERMS, WEIGHTS, of_training
from . import checkpoints
from .gauges import Gauges
from .step_model import StepModel

logger = logging.getLogger(__name__)

PROGRESS = "progress"  # the key of ObjectiveCallback.progress in a checkpoint's trainer_state.json


class NonFiniteLoss(RunFailure):
    """A term of the loss became infinite or NaN. Raised before the optimiser uses its gradients; under DeepSpeed, whose engine
    steps within the backward pass, raised after that. Either way no checkpoint of that step is written."""


class ObjectiveCallback(TrainerCallback):
    """Update the weights at each step, stop on a non-finite term, and write metrics.jsonl.

    model: the model being trained. metrics: the file that gets one line per logged step, or None.
    """

    makes_log = True  # transformers logs each step that this callback logs

    def __init__(self, model: StepModel, metrics: str | Path | None = None):
        self.model, self.metrics = model, Path(metrics) if metrics else None
        self.row: dict | None = None  # the last logged step
        self.gauges = Gauges(model.clock)

    def on_train_begin(self, args, state, control, **objects):
        if args.n_gpu > 1:
            raise UserError(
                f"this process uses {args.n_gpu} GPUs through nn.DataParallel, in which the teacher and the terms are lost; "
                "start one process per GPU (torchrun), or set CUDA_VISIBLE_DEVICES=0"
            )
        if args.world_size > 1 and not args.average_tokens_across_devices:
            raise UserError(
                "average_tokens_across_devices must stay True: the objective counts the rows of all processes"
            )
        done = {"tokens": 0, "seconds": 0.0}
        if self.metrics and args.process_index == 0:
            checkpoint = Path(args.output_dir) / f"{checkpoints.PREFIX}{state.global_step}"
            kept = forget_after(self.metrics, state.global_step, checkpoint / self.metrics.name)
            done = kept[-1] if kept else done
        self.gauges.start(args.device, done["seconds"], done["tokens"])
        done = state.stateful_callbacks.get(PROGRESS, done)
        self.tokens, self.rows = done["tokens"], 0
        self.started = time.perf_counter() - done["seconds"]

    def progress(self, device: torch.device) -> dict:
        """Seconds, and trained tokens of all processes, from which a resumed run continues. Every process has to call this."""
        rows = torch.as_tensor(self.rows, dtype=torch.float64, device=device).clone()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(rows)
        self.tokens, self.rows = self.tokens + int(rows), 0
        return {"tokens": self.tokens, "seconds": time.perf_counter() - self.started}

    def on_step_begin(self, args, state, control, train_dataloader=None, optimizer=None, **objects):
        step, self.learning_rate = state.global_step, optimizer.param_groups[0]["lr"]
        self.model.begin_step(
            step,
            state.max_steps,
            micro_batches_of(step, train_dataloader, args.gradient_accumulation_steps),
            args.world_size,
            logged=is_logged(step + 1, args, state),
            rank=args.process_index,
            short_from=short_from(step, train_dataloader, args.gradient_accumulation_steps),
        )

    def on_substep_end(self, args, state, control, **objects):
        self.model.clock.lap("backward")

    def on_log(self, args, state, control, **objects):
        self.model.clock.rest()

    on_save = on_log

    def on_pre_optimizer_step(self, args, state, control, **objects):
        self.model.clock.lap("backward")
        sums = self.model.sums
        if not sums:
            return
        values = torch.stack([value.double() for value in sums.values()])
        if not torch.isfinite(values).all():
            bad = [name for name, value in zip(sums, values.tolist(), strict=True) if not abs(value) < float("inf")]
            raise NonFiniteLoss(
                f"the {bad[0]} term is {sums[bad[0]].item()} at step {state.global_step + 1}; "
                "lower --learning_rate or that term's weight, or use float32"
            )

    def on_optimizer_step(self, args, state, control, **objects):
        after_step(self.model.student, state.global_step)  # AdaLoRA needs the gradients, which still exist here

    def on_step_end(self, args, state, control, **objects):
        self.model.clock.lap("optimizer")
        self.model.clock.rest()
        if not self.model.sums:
            return
        self.rows = self.rows + self.model.rows  # a tensor, so the device is not synchronised before a step is logged
        if not is_logged(state.global_step, args, state):
            return
        # transformers would not log a last step that is not a multiple of logging_steps
        if self.makes_log and args.logging_strategy != "no":
            control.should_log = True
        self.row = {"step": state.global_step, **self._reduced()}
        self.row |= {"lr": self.learning_rate, "seconds": time.perf_counter() - self.started, "tokens": self.tokens}
        self.row |= self.gauges.row(self.row["seconds"], self.tokens)
        if self.model.gradients:
            self.row |= self._gradient_ratios()
        if self.metrics and args.process_index == 0:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(self.row) + "\n")

    def _reduced(self) -> dict:
        """Loss, terms and weights of the step, over all processes."""
        always = ("loss", *TERMS)
        names = (*always, *(name for name in self.model.sums if name not in always))
        present = [name for name in names if name in self.model.sums]
        values = torch.stack([*(self.model.sums[name].double() for name in present), self.rows.double()])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(values)
        *values, rows = values.tolist()
        self.tokens, self.rows = self.tokens + int(rows), 0
        weights = dict(zip(WEIGHTS, self.model.lambdas, strict=True))  # an adaptive one is in the sums
        return dict.fromkeys(names) | weights | dict(zip(present, values, strict=True))

    def _gradient_ratios(self) -> dict:
        """The norm of the task's gradient, and the gradient norm of each unweighted term divided by it."""
        norms = {}
        for name, pieces in self.model.gradients.items():
            flat = torch.cat([piece.float().flatten() for piece in pieces])
            if distributed.is_available() and distributed.is_initialized():
                distributed.all_reduce(flat)
            norms[name] = torch.linalg.vector_norm(flat).item()
        task = norms.pop("task")
        return {"gradient_norm_task": task} | {
            f"gradient_ratio_{name}": norms[name] / task if task and name in norms else None for name in TERMS[1:]
        }


def forget_after(metrics: Path, step: int, copy: Path) -> list[dict]:
    """Keep the lines of metrics.jsonl up to `step`, since a resumed run rewrites the later ones; return the rows of training steps.

    copy: metrics.jsonl as it was after `step`, from the checkpoint. If the file differs, it is restored with a warning. Runs of
    earlier versions have no copy; unreadable lines are then dropped, because a killed process may leave the last one unfinished.
    """
    there = metrics.read_bytes() if metrics.is_file() else b""
    if step and copy.is_file():
        right = copy.read_bytes()
        if not there.startswith(right):
            logger.warning("%s was altered; it is restored from %s", metrics, copy.parent)
        there = right
    kept = []
    for line in there.decode("utf-8", "replace").splitlines() if step else ():
        try:
            row = unsealed(line.encode(), str(metrics))
            check_kinds(row, str(metrics), {"step": "a number"})
        except DamagedFile:
            logger.warning("%s: a line that cannot be read is dropped: %.40r", metrics, line)
            continue
        if row["step"] <= step:
            kept.append((line, row))
    with atomic_write(metrics) as file:
        file.writelines(line + "\n" for line, _ in kept)
    return of_training(row for _, row in kept)


def is_logged(step: int, args, state) -> bool:
    """Return True if step number `step` is logged: the first, every logging_steps-th and the last step are."""
    every = max(int(state.logging_steps or args.logging_steps), 1)
    return step == 1 or step % every == 0 or step == state.max_steps


def micro_batches_of(step: int, dataloader, accumulation: int) -> int:
    """The number of micro-batches of optimiser step `step` (from 0) on this process: fewer at the end of an epoch."""
    batches = _length(dataloader)
    if batches is None:
        return accumulation
    steps = -(-batches // accumulation)
    return batches - accumulation * (steps - 1) if step % steps == steps - 1 else accumulation


def short_from(step: int, dataloader, accumulation: int) -> int | None:
    """The first micro-batch of optimiser step `step` that may be short, or None: the last one of an epoch, any one of a stream."""
    batches = _length(dataloader)
    if batches is None:
        return 0
    steps = -(-batches // accumulation)
    return micro_batches_of(step, dataloader, accumulation) - 1 if step % steps == steps - 1 else None


def _length(dataloader) -> int | None:
    """The micro-batches of an epoch on this process, as many as on any other; None for a stream."""
    try:
        return len(dataloader)
    except TypeError:  # the last step of a stream is not known in advance
        return None
