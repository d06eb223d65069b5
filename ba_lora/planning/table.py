"""GPU requirements of the published runs, as the table of docs/gpu.md: python -m ba_lora.planning.table [CONFIG ...]

A cell is the first placement that fits: "c" with --gradient_checkpointing, "z" with ZeRO-3, both if both are needed, with the
bytes per device and the hours.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, run_cli
from ..training.arguments import TrainArguments
from ..training.command_line import parse
from . import devices as capacity
from .memory import standing
from .plan import flops_of, precision_of, samples_seen
from .shapes import job_of, passing_of, sizes

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "nlg"
# (placement, with gradient checkpointing?)
ORDER = [
    ("one replica per device", False),
    ("one replica per device", True),
    ("ZeRO-3", False),
    ("ZeRO-3", True),
]
QUANTISED = [("one replica per device, base in 4 bits", False), ("one replica per device, base in 4 bits", True)]
DEVICES = ("1xA40", "2xA40", "4xA40", "8xA40", "1xH100-80")


class Fit(NamedTuple):
    """A way to place a run on devices. size: bytes per device; hours: (shortest, longest), arithmetic alone."""

    placement: str
    checkpointing: bool
    size: int
    flops: float
    hours: tuple[float, float]


def published() -> list[Path]:
    """One config for each model, version and rank; its three data sets cost the same here."""
    return sorted(file for file in FOLDER.glob("*-metamath-*.yaml"))


def row(config: Path) -> str:
    """One line of the table, in Markdown."""
    arguments = parse(["--config", str(config), "--dry_run"])
    cells = [_cell(first_fit(arguments, capacity.read_devices(devices))) for devices in DEVICES]
    work = flops_of(arguments, job_of(arguments), samples_of(arguments))
    return f"| {config.stem.replace('-metamath', '')} | {work:.2e} | {' | '.join(cells)} |"


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


def _cell(fit: Fit | None) -> str:
    if fit is None:
        return "does not fit"
    mark = "c" * fit.checkpointing + "z" * (fit.placement == "ZeRO-3")
    low, high = fit.hours
    return f"{fit.size / 1e9:.1f} GB{' ' * bool(mark)}{mark}, {low:.1f}–{high:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ba_lora.planning.table", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "configs", nargs="*", type=Path, metavar="CONFIG", help="configs of train.py [the published runs]"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    configs = parser.parse_args().configs or published()
    print(f"| run | FLOPs | {' | '.join(name.replace('x', ' × ', 1) for name in DEVICES)} |")
    print("| --- | ---: |" + " ---: |" * len(DEVICES))
    for config in configs:
        print(row(config), flush=True)


if __name__ == "__main__":
    run_cli(main)
