"""transformers.Trainer with the objective: a fixed sample order, every term logged, small checkpoints, loud failures.

The objective itself lives in the model (objective_model.ObjectiveModel), so a stock Trainer can drive it too: wrap the model and
add ObjectiveCallback.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from ..errors import RunFailure, UserError
from ..files import atomic_write
from ..methods.adalora import after_step
from ..methods.save import saved_parameters
from ..objective.settings import TERMS, WEIGHTS, Objective
from ..sharding import gathered, only_tensors
from . import checkpoints
from .gauges import Gauges
from .objective_model import ObjectiveModel
from .step_model import StepModel

logger = logging.getLogger(__name__)

PROGRESS = "progress"  # the key of ObjectiveCallback.progress in a checkpoint's trainer_state.json


class NonFiniteLoss(RunFailure):
    """A term of the loss became infinite or NaN. Raised before the optimiser uses its gradients; under DeepSpeed, whose engine
    steps within the backward pass, raised after that. Either way no checkpoint of that step is written."""


class FixedOrder(Sampler):
    """A permutation of range(count) per epoch that depends only on the seed and the epoch, not on the method.

    With `lengths` (one per sample) it forms micro-batches of similar length: the permutation is cut into blocks of GROUPED
    effective batches; each block is sorted by length and cut into micro-batches, which are shuffled. A shorter one stays last,
    so that the data loader's batch boundaries stay the same for any number of processes.
    """

    GROUPED = 50

    def __init__(
        self,
        count: int,
        seed: int,
        lengths: Sequence[int] | None = None,
        micro_batch_size: int = 1,
        effective_batch_size: int = 1,
    ):
        self.count, self.seed, self.epoch = count, seed, 0
        self.lengths, self.micro, self.block = lengths, micro_batch_size, self.GROUPED * effective_batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch))

    def order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        if self.lengths is None:
            return order
        grouped = []
        for start in range(0, self.count, self.block):
            block = sorted(order[start : start + self.block], key=lambda sample: self.lengths[sample])
            batches = [block[cut : cut + self.micro] for cut in range(0, len(block), self.micro)]
            short = [batches.pop()] if len(batches[-1]) < self.micro else []
            shuffled = torch.randperm(len(batches), generator=generator).tolist()
            grouped += [sample for batch in [*(batches[number] for number in shuffled), *short] for sample in batch]
        return grouped


class ObjectiveCallback(TrainerCallback):
    """Update the weights at each step, stop on a non-finite term, and write metrics.jsonl.

    model: the model being trained. metrics: the file that gets one line per logged step, or None.
    """

    def __init__(self, model: StepModel, metrics: str | Path | None = None):
        self.model, self.metrics = model, Path(metrics) if metrics else None
        self.row: dict | None = None  # the last logged step
        self.gauges = Gauges(model.clock)

    def on_train_begin(self, args, state, control, **objects):
        if args.world_size > 1 and not args.average_tokens_across_devices:
            raise UserError(
                "average_tokens_across_devices must stay True: the objective counts the rows of all processes"
            )
        done = {"tokens": 0, "seconds": 0.0}
        if self.metrics and args.process_index == 0:
            checkpoint = Path(args.output_dir) / f"{checkpoints.PREFIX}{state.global_step}"
            kept = forget_after(self.metrics, state.global_step, checkpoint / self.metrics.name)
            done = kept[-1] if kept else done
        self.gauges.start(done["seconds"], done["tokens"])
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
        if (
            args.logging_strategy != "no"
        ):  # transformers would not log a last step that is not a multiple of logging_steps
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
    """Keep the lines of metrics.jsonl up to `step`, since a resumed run rewrites the later ones; return their rows.

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
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "step" not in row:
            logger.warning("%s: a line that cannot be read is dropped: %.40r", metrics, line)
        elif row["step"] <= step:
            kept.append((line, row))
    with atomic_write(metrics) as file:
        file.writelines(line + "\n" for line, _ in kept)
    return [row for _, row in kept]


class StepBar(TrainerCallback):
    """A progress bar over the optimiser steps that shows the terms of the last logged one."""

    def __init__(self, source: ObjectiveCallback):
        self.source, self.bar = source, None

    def on_train_begin(self, args, state, control, **objects):
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="train", unit="step", mininterval=0.5
            )

    def on_step_end(self, args, state, control, **objects):
        if self.bar is None:
            return
        row = self.source.row
        if row and row["step"] == state.global_step:
            shown = {name: f"{row[name]:.3g}" for name in ("loss", *TERMS) if row[name] is not None}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **objects):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def is_logged(step: int, args, state) -> bool:
    """Return True if step number `step` is logged: the first, every logging_steps-th and the last step are."""
    every = max(int(state.logging_steps or args.logging_steps), 1)
    return step == 1 or step % every == 0 or step == state.max_steps


def micro_batches_of(step: int, dataloader, accumulation: int) -> int:
    """The number of micro-batches of optimiser step `step` (from 0) on this process: fewer at the end of an epoch."""
    try:
        batches = len(dataloader)
    except TypeError:  # a stream has no length, so its last step is not known in advance
        return accumulation
    steps = -(-batches // accumulation)
    return batches - accumulation * (steps - 1) if step % steps == steps - 1 else accumulation


class BALoRATrainer(Trainer):
    """Trainer for a model from `attach`. Everything else is transformers.Trainer's.

    objective: an Objective. metrics: path of metrics.jsonl or None. all_terms, gradient_norms: see StepModel. order: order of
    the samples; None = determined by the seed alone. wrapper: class that wraps `model` with the objective.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        args,
        *,
        metrics: str | Path | None = None,
        all_terms: bool = False,
        gradient_norms: bool = False,
        order: FixedOrder | None = None,
        wrapper: Callable[..., StepModel] = ObjectiveModel,
        **options,
    ):
        self.order, self.place, self.last_saved = order, None, None
        args.logging_nan_inf_filter = False  # a non-finite loss is never replaced by an average
        wrapped = wrapper(model, objective, all_terms=all_terms, gradient_norms=gradient_norms)
        super().__init__(model=wrapped, args=args, **options)
        self.objective_callback = ObjectiveCallback(wrapped, metrics)
        self.add_callback(self.objective_callback)
        for printing in (PrinterCallback, ProgressCallback):
            self.remove_callback(printing)
        self.add_callback(StepBar(self.objective_callback))

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        if self.order is not None:
            return self.order
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return FixedOrder(len(dataset), self.args.data_seed if self.args.data_seed is not None else self.args.seed)

    def _get_num_items_in_batch(self, batch_samples: list, device) -> Tensor | None:
        """Items of the whole optimiser step, over the micro-batches of all processes."""
        if not batch_samples:
            return None
        items = self.objective_callback.model.items
        rows = sum(items(batch["labels"]) for batch in batch_samples).to(device)
        return self.accelerator.gather(rows).sum() if self.args.world_size > 1 else rows

    def _prepare_inputs(self, inputs: dict) -> dict:
        """Keep the precision of the teacher's contribution; under DeepSpeed transformers rounds inputs to the model's precision."""
        kept = {name: inputs[name].to(self.args.device) for name in ("teacher_u", "teacher_c") if name in inputs}
        return {**super()._prepare_inputs(inputs), **kept}

    def log(self, logs: dict, *more, **options) -> None:
        """Add the objective's terms to the values that transformers logs for a step."""
        row = self.objective_callback.row
        if "loss" in logs and row and row["step"] == self.state.global_step:
            logs = {**logs, **{key: value for key, value in row.items() if value is not None}}
        super().log(logs, *more, **options)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        """As transformers', but DeepSpeed's part of a checkpoint omits the frozen tensors and runs no pickled code."""
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        engine = self.model_wrapped
        engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)
        if resume_from_checkpoint is not None:
            with only_tensors():
                deepspeed_load_checkpoint(engine, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return prepared

    def _run_epoch(self, **options) -> None:
        """Do nothing for a run that is resumed after its last step: transformers would take one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**options)

    def _get_output_dir(self, trial=None) -> str:
        """The folder in which transformers writes a checkpoint: initially a temporary name."""
        return str(self.place or super()._get_output_dir(trial))

    def save_last(self, complete: bool) -> None:
        """Save a checkpoint after the last step; without the optimizer's state unless `complete`, since no training follows.

        DeepSpeed reads only its own files, which hold that state."""
        before = self.args.save_only_model
        self.args.save_only_model = not (complete or self.is_deepspeed_enabled)
        try:
            self._save_checkpoint(self.model, None)
        finally:
            self.args.save_only_model = before
        self.last_saved = self.state.global_step

    def _save_checkpoint(self, model, trial) -> None:
        """As transformers', but all or nothing; older checkpoints are removed only after success."""
        if self.state.global_step == self.last_saved:  # save_last has already written it
            return
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"{checkpoints.PREFIX}{self.state.global_step}"
        first = self.is_world_process_zero()
        self.state.stateful_callbacks[PROGRESS] = self.objective_callback.progress(self.args.device)
        student = self.objective_callback.model.student

        def fill(place: Path) -> None:
            checkpoints.keep_start(student, folder / checkpoints.START, first=first)
            self.place = place
            try:
                super(BALoRATrainer, self)._save_checkpoint(model, trial)
            finally:
                self.place = None
            if first and self.objective_callback.metrics:
                checkpoints.keep_beside(self.objective_callback.metrics.parent, place / checkpoint.name)

        checkpoints.write(checkpoint, fill, first=first, device=self.args.device)
        if first and self.args.save_total_limit:
            checkpoints.prune(folder, checkpoint, self.args.save_total_limit)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Let rank 0 call `_save` with whole tensors; transformers would gather the whole model under DeepSpeed."""
        with gathered(saved_parameters(self.objective_callback.model.student)):
            if self.args.should_save:
                self._save(output_dir)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """Save the trained tensors, never the base model."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.save_trained(self.objective_callback.model.student, folder / checkpoints.TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        folder, student = Path(resume_from_checkpoint), self.objective_callback.model.student
        checkpoints.check_start(student, folder.parent / checkpoints.START)
        checkpoints.restore_trained(student, folder / checkpoints.TRAINED)
