"""The devices of this machine, and how many copies of the evaluated model share the prompts on them."""

import os

from ..errors import UserError, whole_number
from ..machine.devices import gpus


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


def device_of() -> str:
    """The kind of device that transformers generates on here."""
    return "cuda" if gpus() else "cpu"


def visible(number: int) -> str | None:
    """CUDA_VISIBLE_DEVICES for the copy of this number: its own GPU among those that this process sees; None without GPUs."""
    if not gpus():
        return None
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return seen.split(",")[number].strip() if seen else str(number)
