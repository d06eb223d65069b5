"""Step times and peak memory of contestants: in turns and each in its own process, or one after another on a large body."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..errors import UserError
from ..files import IMPORTS
from .cases import BASE, CONTESTANTS, Case
from .clock import forget_peak, free, read_peak, timed
from .contestants import PREPARE, Work


class Measured(NamedTuple):
    """One case, its results by contestant, and for a body the seconds that the start of its factors took."""

    case: Case
    results: dict[str, dict]
    start_seconds: float | None = None


WARM_UP = 2  # steps: the first allocates, and the optimiser's moments are there in the second


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
    works = {form: Work(case, form) for form in _forms(names)}
    work_of = {name: works[CONTESTANTS[name].form] for name in names}
    losses_of = {name: PREPARE[name](work_of[name]) for name in names}
    results = {name: {"seconds": [], "loss": None} for name in names}
    for turn in range(repeats + 1):
        for name in names:
            bar.set_description(f"V = {case.vocabulary:,}, time, {name}")
            seconds, loss = timed(case.device, partial(work_of[name].step, losses_of[name]))
            if turn > 0:  # the first round is the warm-up
                results[name]["seconds"].append(seconds)
            results[name]["loss"] = loss.item()
            bar.update()
    base = results[BASE]["seconds"]
    for result in results.values():
        result["ratio"] = median(own / other for own, other in zip(result["seconds"], base, strict=True))
    return results


def measure_in_place(case: Case, names: list[str], repeats: int, bar: tqdm) -> tuple[dict[str, dict], float]:
    """(results as from `measure`, seconds of BASE's start) of contestants that follow each other in this process, those of a form on
    one model.

    Each has two steps of warm-up, and its peak is that of the timed steps with everything that it needs. One that fails for lack of
    memory, or for another project's reasons, has a "failure", no seconds and no loss; the others go on.
    """
    results, start_seconds = {}, {}
    for form in _forms(names):
        bar.set_description(f"{case.body}, model")
        work = Work(case, form)
        start_seconds[form] = work.start_seconds
        for name in (name for name in names if CONTESTANTS[name].form == form):
            bar.set_description(f"{case.body}, {name}")
            results[name] = _in_place_or_failed(work, name, repeats)
            work.__dict__.pop("second_model", None)
            work.optimiser.zero_grad(set_to_none=True)
            gc.collect()
            free(case.device)
            bar.update()
        del work  # before the next model is made
        gc.collect()
        free(case.device)
    base = results[BASE]["seconds"]
    for result in results.values():
        known = result["seconds"] and base
        result["ratio"] = median(result["seconds"]) / median(base) if known else None
    return {name: results[name] for name in names}, start_seconds[CONTESTANTS[BASE].form]


def _forms(names: list[str]) -> list[str]:
    """The forms of the start that the contestants `names` train, each once."""
    return list(dict.fromkeys(CONTESTANTS[name].form for name in names))


def _in_place_or_failed(work: Work, name: str, repeats: int) -> dict:
    try:
        return _in_place(work, name, repeats)
    except torch.OutOfMemoryError:
        return {"seconds": [], "loss": None, "peak": None, "failure": f"'{name}': out of memory"}
    except Exception as error:
        if CONTESTANTS[name].package is None:
            raise
        reason = f"'{name}': {type(error).__name__}: {error}"
        return {"seconds": [], "loss": None, "peak": None, "failure": reason[:300]}


def _in_place(work: Work, name: str, repeats: int) -> dict:
    device, step = work.case.device, partial(work.step, PREPARE[name](work))
    for _ in range(WARM_UP):
        loss = step()
    gc.collect()
    free(device)
    forget_peak(device)
    seconds = [timed(device, step)[0] for _ in range(repeats)]
    return {"seconds": seconds, "loss": loss.item(), "peak": read_peak(device)}


def peak_in_own_process(case: Case, name: str) -> int:
    """Peak memory, in bytes, of two steps of `name` in a separate process. Raises UserError if that process fails."""
    path = os.pathsep.join(filter(None, (str(IMPORTS), os.environ.get("PYTHONPATH"))))
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
    work = Work(case, CONTESTANTS[name].form)
    loss_of = PREPARE[name](work)
    gc.collect()
    forget_peak(case.device)
    for _ in range(2):
        work.step(loss_of)
    return read_peak(case.device)
