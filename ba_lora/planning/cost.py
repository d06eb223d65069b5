"""The cost of a run on the fewest devices that hold it, and of answering a benchmark, for lists of many runs.

These are predictions like those of devices.py, and like them have not been compared with a GPU.
"""

import math
from typing import NamedTuple

from ..errors import UserError, choose
from ..training.arguments import TrainArguments
from . import devices as capacity
from .memory import standing
from .plan import flops_of, precision_of, samples_seen
from .shapes import job_of, passing_of, sizes

COUNTS = (1, 2, 4, 8)
ORDER = [
    ("one replica per device", False),
    ("one replica per device", True),
    ("ZeRO-3", False),
    ("ZeRO-3", True),
]  # with gradient checkpointing?
QUANTISED = [("one replica per device, base in 4 bits", False), ("one replica per device, base in 4 bits", True)]

# Greedy answers to a benchmark: problems, and tokens per completion (assumed). Each token of a batch reads all weights once, which
# limits small batches. A batch waits for its longest completion, which the low reading speed allows for.
ANSWERS = {
    "gsm8k": (1_319, 200),
    "math": (5_000, 300),
    "humaneval": (164, 200),
    "mbpp": (500, 100),
    "mt_bench": (80, 400),
}
BATCH = 64  # prompts at once, as in the evaluations
READING = (0.2, 0.6)  # share of the memory bandwidth, assumed


class Fit(NamedTuple):
    """A way to place a run on devices. size: bytes per device; hours: (shortest, longest), arithmetic alone."""

    placement: str
    checkpointing: bool
    size: int
    flops: float
    hours: tuple[float, float]


class Cost(NamedTuple):
    """The cost of a run. gpu_hours: (least, most), arithmetic alone; devices, such as 2xA40, and fit: None if none is known."""

    flops: float
    gpu_hours: tuple[float, float]
    devices: str | None
    fit: Fit | None


def first_fit(arguments: TrainArguments, devices: capacity.Devices) -> Fit | None:
    """The first placement in ORDER that is known to fit, or None.

    The memory that passes through the layers takes about a second to find, and is computed only if the standing memory leaves
    space. Raises UserError if the number of rows is not known, or the batch cannot be divided among the devices.
    """
    arguments.accumulation(devices.count)
    job, seen, available = job_of(arguments), samples_of(arguments), capacity.room(devices.memory)
    whole = sizes(job).held
    for placement, checkpointing in QUANTISED if arguments.quantize else ORDER:
        options = {"processes": devices.count, "cast": job.autocast, **capacity.PLACEMENTS[placement]}
        pointless = placement == "ZeRO-3" and devices.count == 1
        if pointless or sum(standing(whole, **options).values()) > available:
            continue
        form = job._replace(checkpointing=job.checkpointing or checkpointing)
        passes = passing_of(form)
        size = passes and capacity.placements(whole, passes, devices, job.autocast)[placement]
        if size and size <= available:
            flops = flops_of(arguments, form, seen)
            hours = capacity.hours(flops, devices, precision_of(arguments))
            return Fit(placement, form.checkpointing, size, flops, hours)
    return None


def cost_of(arguments: TrainArguments, name: str = "A40") -> Cost:
    """The cost on the fewest of 1, 2, 4 and 8 devices `name` that can share the batch and have a placement that is known to fit.

    If there are none, the work is that of the run as planned. Raises UserError with the reason if no hours can be predicted: for
    a model that cannot be planned, or an unknown number of rows.
    """
    micro_batches = arguments.effective_batch_size // arguments.micro_batch_size
    for count in (count for count in COUNTS if micro_batches % count == 0):
        if fit := first_fit(arguments, capacity.read_devices(f"{count}x{name}")):
            return Cost(fit.flops, (count * fit.hours[0], count * fit.hours[1]), f"{count}x{name}", fit)
    flops = flops_of(arguments, job_of(arguments), samples_of(arguments))
    return Cost(flops, capacity.hours(flops, capacity.read_devices(name), precision_of(arguments)), None, None)


def samples_of(arguments: TrainArguments) -> float:
    """Samples of all steps together. Raises UserError if the number of rows is not known."""
    seen = samples_seen(arguments)
    if seen is None:
        raise UserError(f"the number of rows of {arguments.data} is not known; set --limit or --max_steps")
    return seen


def evaluation_hours(benchmark: str, weights: int, devices: capacity.Devices) -> tuple[float, float]:
    """A very rough estimate, (shortest, longest), of the hours a model of `weights` bytes takes for `benchmark` on all `devices`.

    It leaves out loading, prompts, keys and values, judging, and running programs.
    """
    problems, tokens = ANSWERS[choose("benchmark", benchmark, ANSWERS)]
    readings = math.ceil(problems / BATCH) * tokens
    seconds = readings * weights / (devices.count * devices.bandwidth)
    return seconds / READING[1] / 3600, seconds / READING[0] / 3600
