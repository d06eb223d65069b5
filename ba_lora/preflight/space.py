"""Disk, the host's memory and the GPUs' memory against what a run needs.

Disk and host are computed from the sizes of the model alone. The GPUs' need comes from the planner, whose libraries take some
seconds to import; it is asked only where there is a GPU.
"""

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil

from ..errors import UserError
from ..folders.disk import existing
from ..machine import driver
from ..machine.devices import HIDE, gpus
from ..methods.names import method_of, start_of
from ..planning.files import disk
from ..training import launch
from ..training.arguments import TrainArguments
from ..training.deepspeed_config import used, zero_stage
from ..training.model_numbers import parameters_of, read_numbers
from ..training.optimizers import state_bytes
from . import hub

TYPES = ("llama", "mistral", "gemma", "gemma3_text", "qwen2")  # models whose linear layers `_matrices` knows
KEPT = 128  # the lowest rank of a cached decomposition, as in methods.decomposition
DRIVER = 0.5e9  # bytes of a GPU that its driver and the libraries take; an estimate
GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def findings(arguments: TrainArguments) -> Iterator[str]:
    """Yield what is too small on this machine; nothing about a model whose sizes are not known."""
    yield from _disks(arguments)
    try:
        here, machines = launch.processes(arguments.use_cpu)
    except UserError as error:
        yield str(error)
        return
    yield from _host(arguments, here)
    yield from _gpu(arguments, here * machines)


def _disks(arguments: TrainArguments) -> Iterator[str]:
    """Disks on which less is free than the run writes there."""
    parts = defaultdict(dict)
    for (content, size), folder in _written(arguments).items():
        parts[_disk_of(folder)] |= {content: (size, folder)}
    for written in parts.values():
        folder = next(iter(written.values()))[1]
        needed, free = sum(size for size, _ in written.values()), free_bytes(folder)
        if needed > free:
            text = ", ".join(f"{content} {size / 1e9:.2f} GB" for content, (size, _) in written.items())
            yield (
                f"the disk of {existing(folder)} has {free / 1e9:.2f} GB free and this run writes {needed / 1e9:.2f} GB there ({text}); "
                f"free some space, or use other disks: {_other_places(written)}"
            )


def _other_places(written: dict) -> str:
    options = {"weights": "HF_HOME", "decomposition cache": "BA_LORA_CACHE"}
    return ", ".join(dict.fromkeys(options.get(content, "--output_dir") for content in written))


def _written(arguments: TrainArguments) -> dict[tuple[str, int], Path]:
    """{(content, bytes): its folder} of everything large that the run writes on this machine."""
    found, output = {}, Path(arguments.output_dir)
    parameters = parameters_of(arguments.model)
    wanted = [source for source in hub.sources(arguments) if source.kind == "model" and not hub.is_cached(source)]
    if wanted and parameters:
        from huggingface_hub import constants

        found["weights", 2 * parameters] = Path(constants.HF_HUB_CACHE)  # published in 16 bits
    matrices = _matrices(arguments)
    for content, size in _files(arguments, parameters, matrices).items():
        if content == "decomposition cache":
            folder = arguments.decomposition_folder()
            there = sum(path.stat().st_size for path in folder.glob("*")) if folder.is_dir() else 0
            if size > there:  # otherwise it may well hold them
                found[content, size] = folder
        elif launch.is_first_machine():
            found[content, size] = output
    there = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())  # replaced, or continued
    if there and (rest := [key for key, folder in found.items() if folder == output]):
        total = sum(size for _, size in rest)
        for key in rest:
            del found[key]
        if total > there:
            found["the rest of the run", total - there] = output
    return found


def _files(arguments: TrainArguments, parameters: int | None, matrices: list[tuple[int, int]]) -> dict[str, int]:
    """`planning.files.disk` from the shapes of the adapted matrices, or for all weights; the adapter of a model that is not known is
    left out."""
    method, trained = method_of(arguments.method), 0
    if arguments.method == "full":
        trained = parameters or 0
    elif method.is_lora:
        trained = sum(arguments.rank * (m + n) for m, n in matrices)
    size = 4 if arguments.method != "full" or arguments.dtype == "float32" else 2
    copy = size * trained if arguments.objective().uses_teacher() else 0
    cached = sum(4 * (m + n + 1) * min(max(arguments.rank, KEPT), m, n) for m, n in matrices)
    deepspeed = used(arguments.deepspeed, math.prod(launch.processes(arguments.use_cpu, check=False)))
    state = {"numbers": trained, "size": 4 * trained if zero_stage(deepspeed) else size * trained}
    state["sides"] = sum(m + n + 2 * arguments.rank for m, n in matrices)
    return disk(
        arguments,
        start_of(arguments.method, arguments.init),
        arguments.max_steps if arguments.max_steps > 0 else None,
        parameters=parameters or 0,
        trained=trained,
        adapter=size * trained,
        copy=copy,
        decompositions=cached,
        state=state_bytes(arguments.optimizer, **state),
        deepspeed=deepspeed,
        cast=arguments.dtype == "bfloat16" and not arguments.use_cpu,
    )


def _matrices(arguments: TrainArguments) -> list[tuple[int, int]]:
    """(rows, columns) of every adapted matrix of a decoder of TYPES; [] for another model."""
    try:
        numbers = read_numbers(arguments.model)[0]
    except UserError:
        return []
    if numbers.get("model_type") not in TYPES:
        return []
    try:
        width, inner, layers = (numbers[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        heads = numbers["num_attention_heads"]
        size = numbers.get("head_dim") or width // heads
        keys = size * (numbers.get("num_key_value_heads") or heads)
        shapes = {"q_proj": (size * heads, width), "k_proj": (keys, width), "v_proj": (keys, width)}
        shapes |= {"o_proj": (width, size * heads), "gate_proj": (inner, width), "up_proj": (inner, width)}
        shapes["down_proj"] = (width, inner)
        named = arguments.targets()
        targets = named["target_modules"]
        chosen = targets if isinstance(targets, list) else shapes  # a pattern at most all of them
        return [shapes[name] for name in chosen if name in shapes] * len(named["layers"] or range(layers))
    except (KeyError, TypeError, ZeroDivisionError):  # sizes that make no sense are refused when the model is opened
        return []


def _disk_of(folder: Path) -> int:
    return os.stat(existing(folder)).st_dev


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk behind `folder`, which need not exist."""
    return shutil.disk_usage(existing(folder)).free


def _host(arguments: TrainArguments, processes: int) -> Iterator[str]:
    """The host's memory, if the processes cannot load their models into it."""
    size = 4 if arguments.dtype == "float32" else 2
    each = size * (parameters_of(arguments.model) or 0)
    free = available_memory()
    if processes * each > free:
        plural = "es each load" if processes > 1 else " loads"
        fewer = "lower NPROC, " if processes > 1 else ""
        yield (
            f"{processes} process{plural} the whole model into the host's memory, {processes * each / 1e9:.1f} GB together, and "
            f"{free / 1e9:.1f} GB are available; {fewer}use a machine with more memory, or --dtype bfloat16 in place of float32"
        )


def available_memory() -> int:
    """Bytes of the host's memory that processes may still take, also by the limit of a container."""
    free = psutil.virtual_memory().available
    for file in GROUPS:
        try:
            free = min(free, int(Path(file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return free


def _gpu(arguments: TrainArguments, processes: int) -> Iterator[str]:
    """The GPUs' memory, if the plan needs more than the fullest has left."""
    found = driver.seen() if gpus(arguments.use_cpu) else None
    if found is None or not found.total:
        return
    needed = _planned(arguments, processes)
    shown = [int(word) for word in os.environ.get(HIDE, "").split(",") if word.strip().isdigit()]
    numbers = [number for number in shown if number < len(found.total)] or range(len(found.total))
    free, total, number = min((found.total[i] - found.used[i], found.total[i], i) for i in numbers)
    free, total = free * 2**20 - DRIVER, total * 2**20
    if needed is not None and needed > free:
        busy = f"; {(total - free - DRIVER) / 1e9:.1f} GB are in use by others" if free < total - 2 * DRIVER else ""
        yield (
            f"the plan needs {needed / 1e9:.1f} GB on each GPU and GPU {number} ({found.name}) has {free / 1e9:.1f} GB free of "
            f"{total / 1e9:.1f}{busy}; lower --micro_batch_size, add --gradient_checkpointing or --deepspeed "
            "configs/deepspeed/zero3.json (train.py --dry_run shows the parts), or take a larger GPU"
        )


def _planned(arguments: TrainArguments, processes: int) -> int | None:
    """Predicted bytes on each GPU at the peak; None for a model whose sizes are not known."""
    from ..planning.shapes import job_of, passing_of, sizes
    from ..planning.standing import standing

    job = job_of(arguments)
    try:
        held, passes = sizes(job).held, passing_of(job) or {}
    except UserError:
        return None
    quantised = bool(arguments.quantize)
    parts = standing(
        held, zero_stage(used(arguments.deepspeed, processes)), processes, cast=job.autocast, nf4=quantised
    )
    return sum(parts.values()) + sum(passes.values())
