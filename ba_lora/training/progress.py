"""The progress of a training: its beginning in words; a bar on stderr if that is a terminal, else a line on stdout now and then."""

import sys
import time
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm
from transformers import TrainerCallback

from ..objective.settings import TERMS
from . import checkpoints
from .callbacks import ObjectiveCallback
from .validation import Validation

PAUSE = 30  # seconds between two lines, at least


def has_bar(args) -> bool:
    """Return True if a bar is wanted (--progress) and stderr is a terminal, on which it can be drawn."""
    return not args.disable_tqdm and sys.stderr.isatty()


class StepBar(TrainerCallback):
    """A progress bar over the optimiser steps that shows the terms of the last logged one, and the last loss on held-out rows."""

    def __init__(self, source: ObjectiveCallback, validation: Validation | None = None):
        self.source, self.validation, self.bar = source, validation, None

    def on_train_begin(self, args, state, control, **objects):
        if state.is_world_process_zero and has_bar(args):
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="train", unit="step", mininterval=0.5
            )

    def on_step_end(self, args, state, control, **objects):
        if self.bar is None:
            return
        row = self.source.row
        if row and row["step"] == state.global_step:
            shown = {name: f"{row[name]:.3g}" for name in ("loss", *TERMS) if row[name] is not None}
            if look := _last_look(self.validation):
                shown["held_out"] = f"{look['task']:.3g}"
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **objects):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class StepLines(TrainerCallback):
    """Without a bar: a line after the first step and then every PAUSE seconds, with the last logged loss, the last loss on held-out
    rows and the time left."""

    def __init__(self, source: ObjectiveCallback, validation: Validation | None = None):
        self.source, self.validation, self.said = source, validation, None

    def on_train_begin(self, args, state, control, **objects):
        self.first, self.began, self.said = state.global_step, time.monotonic(), None

    def on_step_end(self, args, state, control, **objects):
        now, row = time.monotonic(), self.source.row
        is_due = self.said is None or now - self.said >= PAUSE
        if row is None or not is_due or has_bar(args) or not state.is_world_process_zero:
            return
        self.said, step = now, state.global_step
        left = (now - self.began) / (step - self.first) * (state.max_steps - step)
        of = "" if row["step"] == step else f" (step {row['step']})"
        look = _last_look(self.validation)
        held_out = f", held-out task loss {look['task']:.3f} (step {look['step']})" if look else ""
        print(
            f"step {step} of {state.max_steps}, loss {row['loss']:.3f}{of}{held_out}, about "
            f"{timedelta(seconds=round(left))} left",
            flush=True,
        )


def _last_look(validation: Validation | None) -> dict | None:
    """The last look at the held-out rows, or None."""
    return validation.state["last"] if validation else None


def continues_from(checkpoint: str | None) -> str:
    """Where --resume begins, in words."""
    if checkpoint is None:
        return "no checkpoint to continue from, so the run starts before step 1"
    return f"continues after step {Path(checkpoint).name.removeprefix(checkpoints.PREFIX)}"


def started_from(facts: dict) -> str:
    """A one-line summary of the decomposition of the weights."""
    return (
        f"{facts['method']}: {facts['decomposed']} matrices decomposed, {facts['from_cache']} read from the cache, "
        f"in {facts['seconds']:.1f} s; W_res holds up to {facts['residual']:.3f} of a matrix' norm"
    )
