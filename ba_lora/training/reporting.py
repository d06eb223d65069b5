"""Reports beside metrics.jsonl: TensorBoard and Weights & Biases. Their files go to RUN/logs."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError, choose

REPORTERS = ("tensorboard", "wandb")  # transformers' names, which are also the package names


def check_reporters(names: Sequence[str]) -> None:
    """Raise UserError for a reporter that is unknown or whose package is not installed."""
    for name in names:
        choose("--report_to", name, REPORTERS)
        if importlib.util.find_spec(name) is None:
            extra = " (the extra report)" if name == "tensorboard" else ""
            raise UserError(f"--report_to {name} needs the package {name}; install it with: pip install {name}{extra}")


@contextmanager
def reporting(trainer, folder: Path) -> Iterator[None]:
    """Let `trainer` report into `folder`/logs while the block runs; afterwards close the run of Weights & Biases.

    TENSORBOARD_LOGGING_DIR, WANDB_DIR and WANDB_PROJECT are kept if the user has set them.
    """
    from transformers.integrations import TensorBoardCallback

    logs = folder / "logs"
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(logs)
    if "wandb" not in trainer.args.report_to or not trainer.is_world_process_zero():
        yield
        return
    import wandb

    logs.mkdir(parents=True, exist_ok=True)
    project = os.environ.get("WANDB_PROJECT", "ba-lora")
    with wandb.init(project=project, name=folder.resolve().name, dir=os.environ.get("WANDB_DIR", logs)):
        yield  # transformers' callback logs to the run that is open
