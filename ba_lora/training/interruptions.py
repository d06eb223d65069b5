"""Early ends of a run: signals, which first write a checkpoint, and machine failures, reported in one line."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import distributed
from transformers import TrainerCallback

from .. import signals
from ..errors import RunFailure, Stopped, UserError
from ..folders.disk import full, is_full

NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "not enough memory")


def cause(error: Exception, folder: Path) -> str | None:
    """The machine resource that ran out, with the remedy, or None for any other error. folder: the folder the run writes to."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU is out of memory; lower --micro_batch_size (the step stays as it is) or add --gradient_checkpointing"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in text for sign in NO_MEMORY)):
        return "out of memory; lower --micro_batch_size (the step stays as it is) or add --gradient_checkpointing"
    return full(folder) if is_full(error) else None


@contextmanager
def explained(where: Callable[[], str], folder: Path) -> Iterator[None]:
    """Turn a full disk or a lack of memory inside the block into a RunFailure. where: the place, such as "in step 3"."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = cause(error, folder)
        if reason is None:
            raise
        raise RunFailure(f"{where()}: {reason}; then continue with --resume") from error


def on_any_process(happened: bool, device: torch.device) -> bool:
    """Return True on all processes if `happened` on any of them. Every process has to call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return happened
    seen = torch.tensor(float(happened), device=device)
    distributed.all_reduce(seen, op=distributed.ReduceOp.MAX)
    return bool(seen)


class StopSignals(TrainerCallback):
    """On SIGTERM or SIGINT, write a checkpoint at the end of the current step and raise Stopped. Use it in a `with` block.

    All processes stop after the same step, whichever of them received the signal. A signal during the last step does not
    stop the run. A second Ctrl-C interrupts at once. Ignored signals (nohup) stay ignored.
    """

    def __init__(self):
        self.received: str | None = None
        self.since = 0.0
        self.stopping = False
        self.before: dict = {}

    def __enter__(self) -> "StopSignals":
        self.stack = ExitStack()
        self.before = self.stack.enter_context(signals.handled(self._note))
        return self

    def __exit__(self, *exception) -> None:
        self.stack.close()

    def _note(self, number: int, frame) -> None:
        if self.received is None:
            self.received, self.since = signal.Signals(number).name, time.monotonic()
            signals.note(number)
        elif number == signal.SIGINT and time.monotonic() - self.since > signals.AGAIN:
            if callable(self.before[number]):
                self.before[number](number, frame)
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **objects):
        self.stopping = on_any_process(self.received is not None, args.device) and state.global_step < state.max_steps
        control.should_save = control.should_save or self.stopping

    def on_save(self, args, state, control, **objects):
        if self.stopping:
            raise Stopped(
                f"{self.received or 'a signal to another process'} after step {state.global_step} of {state.max_steps}; "
                f"its checkpoint is in {args.output_dir}, continue with --resume"
            )
