"""Seconds and peak memory of a piece of work on a device: its own events and allocator on CUDA, wall time and /proc on a CPU."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device: str, work: Callable) -> tuple[float, object]:
    """(seconds of work() on the device, its result)."""
    if device != "cuda":
        began = time.perf_counter()
        result = work()
        return time.perf_counter() - began, result
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    wait(device)
    first.record()
    result = work()
    last.record()
    wait(device)
    return first.elapsed_time(last) / 1000, result


def forget_peak(device: str) -> None:
    """Start a new peak; without Linux's /proc, a CPU's is that of the whole process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def read_peak(device: str) -> int:
    """Bytes at the peak since `forget_peak`: allocated by torch on CUDA, resident on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free(device: str) -> None:
    """Give unused memory back to the device."""
    if device == "cuda":
        torch.cuda.empty_cache()
