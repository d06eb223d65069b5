"""The device that a process computes on, and the number of processes that follows: one source for training and evaluation.

A GPU that the driver sees and torch cannot use is an error, never a silent run on the CPU.
"""

import os
import re
import sys

from ..errors import UserError
from . import driver

HIDE = "CUDA_VISIBLE_DEVICES"
ON_CPU = 1_000_000_000  # parameters: a larger model is trained on a CPU only if that is asked for


def gpus(use_cpu: bool = False, *, check: bool = True) -> int:
    """The GPUs that this process may use; 0 means the CPU.

    Raises UserError if the driver sees a GPU that torch cannot use, unless CUDA_VISIBLE_DEVICES hides them all or not `check`.
    """
    if use_cpu or ("torch" not in sys.modules and not driver.may_have_gpus()):
        return 0
    import torch  # here, because it takes seconds

    if torch.cuda.is_available():  # device_count alone counts GPUs that no operation can use
        return torch.cuda.device_count()
    if check and not _are_hidden() and (found := driver.seen()):
        raise UserError(_unusable(found, torch))
    return 0


def hide_gpus() -> None:
    """Hide the GPUs from every library in this process and from the processes that it starts, before one looks for them."""
    os.environ[HIDE] = "-1"


def device(use_cpu: bool = False) -> str:
    """The name of this process's device for torch; see `gpus`. LOCAL_RANK is set by the launchers."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpus(use_cpu) else "cpu"


def visible(number: int) -> str | None:
    """CUDA_VISIBLE_DEVICES for a process that gets the GPU of this number among those seen here; None without GPUs."""
    if not gpus():
        return None
    seen = os.environ.get(HIDE)
    return seen.split(",")[number].strip() if seen else str(number)


def refuse_unmeant_cpu(parameters: int | None, model: str, use_cpu: bool) -> None:
    """Raise UserError if a training would run on a CPU that was not asked for: see `gpus`, and any model above ON_CPU.

    parameters: of the model; None if their number is not known.
    """
    if not use_cpu and not gpus() and (parameters or 0) > ON_CPU:
        raise UserError(
            f"--model {model} has {parameters / 1e9:.1f}B parameters and there is no GPU here; start on a machine with one, or "
            "add --use_cpu to train on the CPU all the same"
        )


def _are_hidden() -> bool:
    """Return True if CUDA_VISIBLE_DEVICES leaves no GPU: it is empty, or its first entry names none (-1, NoDevFiles)."""
    value = os.environ.get(HIDE)
    return value is not None and not re.match(r"\s*(\d|GPU-|MIG-)", value)


def _unusable(found: driver.Driver, torch) -> str:
    """Why torch cannot use the driver's GPUs, and the remedy."""
    count = f"{found.gpus} GPU{'s' if found.gpus > 1 else ''}" + (f" ({found.name})" if found.name else "")
    cuda, lowest = torch.version.cuda, driver.lowest_for(torch.version.cuda)
    build = f"torch {torch.__version__}"
    if cuda is None:
        reason, remedy = f"{build} is a build without CUDA", driver.remedy_for(found.version)
    elif lowest and found.version and driver.numbers(found.version) < driver.numbers(lowest):
        reason = f"{build} is built for CUDA {cuda}, which needs driver {lowest} or newer"
        remedy = f"{driver.remedy_for(found.version)}; or update the driver"
    else:
        reason = f"{build}, built for CUDA {cuda}, cannot use them ({found.trouble or _reason(torch)})"
        chosen = f"{HIDE} is {os.environ[HIDE]}" if HIDE in os.environ else ""
        remedy = f"correct that: {chosen}" if chosen else "restart the machine or ask its administrator"
    return (
        f"the driver {found.version or 'of this machine'} sees {count} and {reason}; {remedy}; or compute on the CPU: --use_cpu for "
        f"a training, {HIDE}=-1 for anything"
    )


def _reason(torch) -> str:
    """The error of torch when it is made to use a GPU."""
    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError, AssertionError: as the build has it
        return " ".join(str(error).split())[:200] or type(error).__name__
    return "no reason given"
