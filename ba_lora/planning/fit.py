"""The first way to place a run on given devices that is predicted to fit."""

from typing import NamedTuple

from ..errors import UserError
from ..training.arguments import TrainArguments
from . import devices as capacity
from .plan import flops_of, precision_of
from .rows import samples_seen
from .shapes import job_of, passing_of, sizes
from .standing import standing

# (placement, with gradient checkpointing?)
ORDER = [
    ("one replica per device", False),
    ("one replica per device", True),
    ("ZeRO-3", False),
    ("ZeRO-3", True),
]
QUANTISED = [("one replica per device, base in 4 bits", False), ("one replica per device, base in 4 bits", True)]


class Fit(NamedTuple):
    """A way to place a run on devices. size: bytes per device; hours: (shortest, longest), arithmetic alone."""

    placement: str
    checkpointing: bool
    size: int
    flops: float
    hours: tuple[float, float]


def first_fit(arguments: TrainArguments, devices: capacity.Devices) -> Fit | None:
    """The first placement in ORDER that is known to fit, or None.

    The memory that passes through the layers takes about a second to find, and is computed only if the standing memory leaves
    space. Raises UserError if the number of rows is not known, or the batch cannot be divided among the devices.
    """
    arguments.accumulation(devices.count)
    job, seen, available = job_of(arguments), samples_of(arguments), capacity.usable(devices.memory)
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


def samples_of(arguments: TrainArguments) -> float:
    """Samples of all steps together. Raises UserError if the number of rows is not known."""
    seen = samples_seen(arguments)
    if seen is None:
        raise UserError(f"the number of rows of {arguments.data} is not known; set --limit or --max_steps")
    return seen
