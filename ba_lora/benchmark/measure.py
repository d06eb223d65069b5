"""Step times of contestants that take turns, and the peak memory of each in its own process."""

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from ..errors import UserError
from .cases import BASE, Case
from .contestants import PREPARE, Work


def measure(case: Case, names: list[str], repeats: int, memory: bool, bar: tqdm) -> dict[str, dict]:
    """{name: {"seconds": one per round, "ratio", "loss", "peak": bytes or None}} of the contestants `names` at one size.

    A memory figure that could not be measured is None, and "failure" gives the reason.
    """
    results = _times(case, names, repeats, bar)
    gc.collect()  # free the model before the memory processes start
    for name in names:
        results[name]["peak"] = None
        if memory:
            bar.set_description(f"V = {case.vocabulary:,}, memory, {name}")
            try:
                results[name]["peak"] = peak_in_own_process(case, name)
            except UserError as error:  # the other figures are still valid
                results[name]["failure"] = str(error)
            bar.update()
    return results


def _times(case: Case, names: list[str], repeats: int, bar: tqdm) -> dict[str, dict]:
    bar.set_description(f"V = {case.vocabulary:,}, model")
    work = Work(case, second_model="published" in names)
    losses_of = {name: PREPARE[name](work) for name in names}
    results = {name: {"seconds": [], "loss": None} for name in names}
    for turn in range(repeats + 1):
        for name in names:
            bar.set_description(f"V = {case.vocabulary:,}, time, {name}")
            work.rewind()
            _wait(case)
            start = time.perf_counter()
            loss = work.step(losses_of[name])
            _wait(case)
            if turn > 0:  # the first round is the warm-up
                results[name]["seconds"].append(time.perf_counter() - start)
            results[name]["loss"] = loss.item()
            bar.update()
    base = results[BASE]["seconds"]
    for result in results.values():
        result["ratio"] = median(own / other for own, other in zip(result["seconds"], base, strict=True))
    return results


def _wait(case: Case) -> None:
    if case.device == "cuda":
        torch.cuda.synchronize()


def peak_in_own_process(case: Case, name: str) -> int:
    """Peak memory, in bytes, of two steps of `name` in a separate process. Raises UserError if that process fails."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": path}
    command = [sys.executable, "-m", "ba_lora.benchmark", "--child", json.dumps(asdict(case)), name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}, perhaps out of memory"]
        raise UserError(
            f"the memory of '{name}' at V = {case.vocabulary} was not measured ({lines[-1].removeprefix('error: ')}); "
            "use smaller sizes, leave it out with --only, or give --no_memory"
        )
    return int(done.stdout.strip().splitlines()[-1])


def peak_of(case: Case, name: str) -> int:
    """Peak memory, in bytes, of two steps of `name` in this process."""
    work = Work(case, second_model=name == "published")
    loss_of = PREPARE[name](work)
    gc.collect()
    reset, read = _cuda_peak() if case.device == "cuda" else _resident_peak()
    reset()
    for _ in range(2):
        work.rewind()
        work.step(loss_of)
    return read()


def _cuda_peak() -> tuple[Callable, Callable]:
    return torch.cuda.reset_peak_memory_stats, torch.cuda.max_memory_allocated


def _resident_peak() -> tuple[Callable, Callable]:
    """(reset, read) of the largest resident memory; without Linux's /proc nothing is reset."""
    status = Path("/proc/self/status")

    def forget() -> None:
        if status.exists():
            Path("/proc/self/clear_refs").write_text("5")

    def read() -> int:
        if status.exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    return forget, read
