"""A look at the held-out rows during training: the loss and the terms on them, the best step so far, and an early end.

The rows are cut into micro-batches in their order, alike for any number of processes, which take turns at them. The sums of all
micro-batches are added in their order in float64, so that the result does not depend on the number of processes. The model is in
evaluation mode, no gradient is computed, and no random number is drawn: the training goes on as without a look.
"""

import json
import logging
import math
import time
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from ..errors import DamagedFile, RunFailure
from ..methods.save import saved_parameters
from ..objective.settings import TERMS
from ..sharding import gathered
from . import checkpoints
from .arguments import TrainArguments
from .callbacks import NonFiniteLoss
from .held_out import HeldOut
from .interruptions import on_any_process

logger = logging.getLogger(__name__)

STATE = "validation"  # the key of the state below in a checkpoint's trainer_state.json
PREFIX = "validation_"  # of the names in metrics.jsonl
PARTS = 10  # looks during a run, without --validation_steps


class Validation(TrainerCallback):
    """Look at the held-out rows after every `every`-th step (None: a tenth of the run) and the last one.

    batch: samples of a micro-batch. keep: "best" keeps the trained tensors of the step with the lowest task loss in
    checkpoints/best.safetensors. patience: the run ends after so many looks in a row without a new lowest task loss; None: never.
    `trainer` is set once it exists. The state goes into every checkpoint:

    best, last    {"step", terms} of the look with the lowest task loss (the earliest of equal ones), and of the last look
    since         looks after the best one
    stopped       True if the run has ended early
    """

    def __init__(
        self, held_out: HeldOut, batch: int, every: int | None = None, keep: str = "last", patience: int | None = None
    ):
        self.held_out, self.batch, self.steps_between = held_out, batch, every
        self.keeps_best, self.patience, self.trainer = keep == "best", patience, None
        self.state = {"best": None, "last": None, "since": 0, "stopped": False}

    def on_train_begin(self, args, state, control, **objects):
        self.planned = state.max_steps
        self.every = self.steps_between or math.ceil(self.planned / PARTS)
        self.state |= state.stateful_callbacks.get(STATE, {})
        if self.keeps_best and state.is_world_process_zero:
            self._put_back(Path(args.output_dir), state.global_step)
        if self.state["stopped"]:
            state.max_steps = state.global_step  # nothing is left to do but the end of the run

    def _put_back(self, folder: Path, step: int) -> None:
        """Make the best tensors those of the checkpoint from which the run continues: a killed process may have left later ones."""
        best, kept = folder / checkpoints.BEST, folder / f"{checkpoints.PREFIX}{step}" / checkpoints.BEST
        if not self.state["best"]:
            best.unlink(missing_ok=True)
        elif kept.is_file():
            checkpoints.put(kept, best)
        else:
            raise DamagedFile(
                f"{kept} is missing, which holds the best step's tensors; remove that checkpoint, and --resume takes the one before it"
            )

    def on_step_end(self, args, state, control, **objects):
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        begun, counted = time.perf_counter(), self.trainer.objective_callback
        look = {"step": state.global_step, **self.look()}
        self._take(look, args, state)
        seconds = time.perf_counter() - begun
        if counted.metrics and args.process_index == 0:
            row = {PREFIX + name if name != "step" else name: value for name, value in look.items()}
            with open(counted.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(row | {f"{PREFIX}seconds": seconds}) + "\n")
        self.trainer.log(
            {f"eval_{name}": value for name, value in look.items() if name != "step" and value is not None}
        )
        state.stateful_callbacks[STATE] = dict(self.state)
        if self.state["stopped"]:
            state.max_steps, control.should_training_stop = state.global_step, True
        counted.started += time.perf_counter() - begun  # the training time excludes looks
        counted.model.clock.rest()

    def _take(self, look: dict, args, state) -> None:
        """Compare a look with the best one so far."""
        bad = [name for name, value in look.items() if value is not None and not math.isfinite(value)]
        if bad:
            raise NonFiniteLoss(
                f"the {bad[0]} term on the held-out rows is {look[bad[0]]} after step {look['step']}; lower --learning_rate or that "
                "term's weight, or use float32"
            )
        best = self.state["best"]
        is_best = best is None or look["task"] < best["task"]
        self.state |= {"last": look, "since": 0 if is_best else self.state["since"] + 1}
        if is_best:
            self.state["best"] = look
            if self.keeps_best:
                self._keep(args, state)
        if self.patience and self.state["since"] >= self.patience and state.global_step < state.max_steps:
            self.state["stopped"] = True

    def _keep(self, args, state) -> None:
        """Write the trained tensors of this step. Every process calls this; rank 0 writes."""
        student, failure = self.trainer.objective_callback.model.student, None
        with gathered(saved_parameters(student)):
            if state.is_world_process_zero:
                try:
                    checkpoints.keep_best(student, Path(args.output_dir) / checkpoints.BEST, state.global_step)
                except Exception as error:
                    failure = error
        if on_any_process(failure is not None, args.device):
            raise failure or RunFailure("another process could not write the best step; its own message says why")

    def look(self) -> dict[str, float | None]:
        """The terms on all held-out rows: means over tokens (or samples of a classifier); a statistic of a micro-batch is averaged
        over them. None for a term without a weight. Every process has to call this."""
        trainer, model = self.trainer, self.trainer.objective_callback.model
        samples, rank, ranks = self.held_out.samples, trainer.args.process_index, trainer.args.world_size
        starts, found = range(0, len(samples), self.batch), []
        with model.measuring(), trainer.accelerator.autocast():
            for first in range(0, len(starts), ranks):
                number = first + rank
                start = starts[number if number < len(starts) else 0]  # each process runs as often, as ZeRO-3 needs it
                chosen = range(start, min(start + self.batch, len(samples)))
                batch = trainer._prepare_inputs(self.held_out.collate([samples[each] for each in chosen]))
                terms, items = model.measure(**batch)
                if number < len(starts):
                    found.append((number, terms, items))
        plain = [(number, _plain(terms), items) for number, terms, items in found]
        return _means(sorted(gather_object(plain) if ranks > 1 else plain, key=lambda each: each[0]), model.averaged)

    def restore(self, student, folder: Path) -> None:
        """With keep "best": give `student`, whose tensors are whole, those of the best step. folder: of the checkpoints."""
        if self.keeps_best:
            checkpoints.restore_best(student, folder / checkpoints.BEST, self.state["best"]["step"])

    def told(self) -> str:
        """The choice of the step that is saved, in words."""
        best, last = self.state["best"], self.state["last"]
        early = f"ended after step {last['step']} of {self.planned}: {self.state['since']} looks without a lower task loss; "
        losses = (
            f"lowest {best['task']:.4g} after step {best['step']}, last {last['task']:.4g} after step {last['step']}"
        )
        kept = best if self.keeps_best else last
        return (
            f"{early if self.state['stopped'] else ''}task loss on {len(self.held_out.samples)} held-out rows: {losses}; "
            f"step {kept['step']} is saved"
        )

    def outcome(self) -> dict:
        """The part of run.json that the held-out rows have decided."""
        kept = self.state["best" if self.keeps_best else "last"]
        return {
            **self.held_out.facts,
            "every": self.every,
            "planned_steps": self.planned,
            "keep": "best" if self.keeps_best else "last",
            **{name: self.state[name] for name in ("best", "last")},
            "saved_step": kept["step"],
            "stopped_early": self.state["stopped"],
        }


def validation_of(arguments: TrainArguments, held_out: HeldOut | None) -> Validation | None:
    """The looks at the held-out rows as the options of a run want them; None without held-out rows."""
    if held_out is None:
        return None
    chosen = arguments.validation_steps, arguments.keep, arguments.patience
    return Validation(held_out, arguments.micro_batch_size, *chosen)


def _plain(terms: dict[str, torch.Tensor | None]) -> dict[str, float | None]:
    present = [name for name, term in terms.items() if term is not None]
    values = torch.stack([terms[name].double() for name in present]).tolist()
    return dict.fromkeys(terms) | dict(zip(present, values, strict=True))


def _means(batches: list[tuple[int, dict, int]], averaged: tuple[str, ...]) -> dict[str, float | None]:
    """The means over all micro-batches from (number, terms, items) of each."""
    items, made = sum(items for _, _, items in batches), {}
    for name in (*TERMS, *(name for name in batches[0][1] if name not in TERMS)):
        values = [terms.get(name) for _, terms, _ in batches]
        if None in values:
            made[name] = None
        else:
            made[name] = math.fsum(values) / (len(batches) if name in averaged else items)
    return made
