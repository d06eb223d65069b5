"""Whether a planned run fits given devices, and how long it takes there: --dry_run --devices 8xA40.

Both are predictions from shapes and data sheets. No GPU was at hand to compare them with.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import yaml

from ..errors import UserError, nearest
from .memory import Held, standing

TABLE = Path(__file__).resolve().parents[2] / "configs" / "devices.yaml"
RESERVE = 0.1  # of a device's memory, assumed: the driver, the libraries' workspaces, fragmentation
UTILISATION = (0.25, 0.45)  # of the peak, assumed: what fine-tuning usually reaches

# What `standing` is told for each way to place a run; the processes are added.
PLACEMENTS = {
    "a replica each": {},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
    "ZeRO-3, offloaded": {"zero_stage": 3, "offload": True},
    "a replica each, base in 4 bits": {"nf4": True},
}


class Devices(NamedTuple):
    """So many of one kind. Of one: memory in bytes, peaks as {precision: operations a second}, bandwidth in bytes a second."""

    count: int
    name: str
    memory: int
    peaks: dict[str, float]
    bandwidth: float


@lru_cache(maxsize=1)
def table() -> dict[str, dict]:
    """What configs/devices.yaml says, by the device's name."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def read_devices(text: str) -> Devices:
    """'8xA40' → Devices; 'A40' is one. Raises UserError for a device that is not in the table."""
    count, cross, name = text.rpartition("x")
    known = {each.lower(): each for each in table()}
    if name.lower() not in known or (cross and not (count.isdigit() and int(count) > 0)):
        raise UserError(
            f"--devices '{text}' is no COUNTxNAME of configs/devices.yaml{nearest(name, table())}; "
            f"NAME is one of {', '.join(table())}, as in 8xA40"
        )
    found = table()[known[name.lower()]]
    peaks = {precision: found[precision] * 1e12 for precision in ("bfloat16", "tf32", "float32")}
    return Devices(int(count or 1), known[name.lower()], int(found["memory"] * 1e9), peaks, found["bandwidth"] * 1e9)


def hours(flops: float, devices: Devices, precision: str) -> tuple[float, float]:
    """(shortest, longest) hours of the arithmetic alone, at the two ends of UTILISATION."""
    seconds = flops / (devices.count * devices.peaks[precision])
    return seconds / UTILISATION[1] / 3600, seconds / UTILISATION[0] / 3600


def placements(whole: Held, passing: dict[str, int], devices: Devices, cast: bool) -> dict[str, int]:
    """{placement: bytes a device}. passing: what a micro-batch needs beside what is standing; cast: see `standing`.

    With ZeRO the passing part is an upper bound: DeepSpeed runs without autocast, which keeps some inputs twice.
    """
    return {
        name: sum(standing(whole, processes=devices.count, cast=cast, **options).values()) + sum(passing.values())
        for name, options in PLACEMENTS.items()
    }


def room(memory: int) -> float:
    """Bytes of a device's memory that are counted on."""
    return (1 - RESERVE) * memory


def host(whole: Held, start: str, target: tuple[int, int], rank: int, processes: int) -> dict[str, int]:
    """Bytes of the processors' memory that one machine with so many processes needs.

    loading: every process reads the whole model, whatever ZeRO divides later. decomposition: of the largest target (m, n)
    beside it, in a process: a float32 copy and its factors U, S and V (of a randomised start `rank` columns of each), without
    the libraries' workspace. offloaded: what ZeRO-3 keeps there when it offloads, if this is the only machine.
    """
    m, n = target
    kept = 0
    if start.startswith("pissa"):
        columns = min(m, n) if start == "pissa" else rank
        kept = 4 * (m * n + (m + n + 1) * columns)
    states = whole.weights + whole.adapter + whole.copy + 12 * whole.trained
    return {
        "loading": processes * (whole.weights + whole.adapter + whole.copy),
        "decomposition": processes * kept,
        "offloaded": states + whole.adapter,
    }


def lines(made: dict) -> list[tuple[str, str]]:
    """What plan.plan says of its devices, as pairs of a name and a text."""
    devices, forms, host = f"{made['count']} × {made['name']}", made["forms"], made["host"]
    available = room(made["memory"])
    work = time = "unknown: so is the number of rows"
    if made["samples"]:
        work = ", ".join(f"{form['flops']:.2e} FLOPs {name}" for name, form in forms.items())
        time = ", ".join(f"{_hours(*form['hours'])} {name}" for name, form in forms.items())
        work += f"; {made['samples']:,.0f} samples, {made['sample']}"
        low, high = (f"{100 * share:.0f} %" for share in UTILISATION)
        time += f"; {high} to {low} of {made['peak'] / 1e12:g} TFLOP/s in {made['precision']} assumed, arithmetic alone"
    rows = [
        ("work, predicted", work),
        (f"time on {devices}", time),
        (
            f"fits {devices}",
            f"up to {_gb(available)} of {_gb(made['memory'])} a device, {100 * RESERVE:.0f} % kept free",
        ),
    ]
    for placement in forms["as planned"]["placements"] or ():
        sizes = {name: form["placements"][placement] for name, form in forms.items()}
        told = [
            f"{_gb(size)} {name}: {'fits' if size <= available else 'does not fit'}" for name, size in sizes.items()
        ]
        rows.append((f"  {placement}", ", ".join(told)))
    if not forms["as planned"]["placements"]:
        rows.append(("  unknown", "what passes through the layers was not predicted"))
    count = made["processes_a_machine"]
    processes = f"{count} process{'es' if count > 1 else ''}"
    rows.append(("memory of a machine", f"{_gb(host['loading'])} to load: {processes}, a whole model in each"))
    if host["decomposition"]:
        rows.append(("  PiSSA start", f"{_gb(host['decomposition'])} more, for each process's largest matrix"))
    if not made["quantized"]:  # ZeRO-3 does not cut 4 bits
        rows.append(("  ZeRO-3, offloaded", f"{_gb(host['offloaded'])} while training, over all machines"))
    return [*rows, ("", "No GPU was here to compare this with.")]


def _hours(low: float, high: float) -> str:
    digits = 1 if high >= 1 else 3
    return f"{low:.{digits}f} to {high:.{digits}f} h"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
