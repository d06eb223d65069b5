"""Predict if a planned run fits given devices and how long it takes there: --dry_run --devices 8xA40.

Both predictions come from shapes and data sheets. No GPU was available to compare them with.
"""

from functools import lru_cache
from typing import NamedTuple

from ..errors import UserError, nearest
from ..files import PROJECT, read_yaml
from .standing import Held, standing

TABLE = PROJECT / "configs" / "devices.yaml"
RESERVE = 0.1  # share of a device's memory, assumed: the driver, the libraries' workspaces, fragmentation
UTILISATION = (0.25, 0.45)  # share of the peak, assumed: what fine-tuning usually reaches

# Arguments of `standing` for each way to place a run; the number of processes is added.
PLACEMENTS = {
    "one replica per device": {},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
    "ZeRO-3, offloaded": {"zero_stage": 3, "offload": True},
    "one replica per device, base in 4 bits": {"nf4": True},
}


class Devices(NamedTuple):
    """`count` devices of one kind. Each has memory in bytes, and peaks as {precision: operations/s}."""

    count: int
    name: str
    memory: int
    peaks: dict[str, float]


@lru_cache(maxsize=1)
def table() -> dict[str, dict]:
    """The content of configs/devices.yaml, by device name."""
    return read_yaml(TABLE)


def read_devices(text: str) -> Devices:
    """'8xA40' → Devices; 'A40' means one. Raises UserError for a device that is not in the table."""
    count, cross, name = text.rpartition("x")
    known = {each.lower(): each for each in table()}
    if name.lower() not in known or (cross and not (count.isdigit() and int(count) > 0)):
        raise UserError(
            f"--devices '{text}' is not a COUNTxNAME of configs/devices.yaml{nearest(name, table())}; "
            f"NAME is one of {', '.join(table())}, as in 8xA40"
        )
    found = table()[known[name.lower()]]
    peaks = {precision: found[precision] * 1e12 for precision in ("bfloat16", "tf32", "float32")}
    return Devices(int(count or 1), known[name.lower()], int(found["memory"] * 1e9), peaks)


def hours(flops: float, devices: Devices, precision: str) -> tuple[float, float]:
    """(shortest, longest) hours of the arithmetic alone, at the two ends of UTILISATION."""
    seconds = flops / (devices.count * devices.peaks[precision])
    return seconds / UTILISATION[1] / 3600, seconds / UTILISATION[0] / 3600


def placements(whole: Held, passing: dict[str, int], devices: Devices, cast: bool) -> dict[str, int]:
    """{placement: bytes per device}. passing: memory of a micro-batch beside the standing memory; cast: see `standing`.

    With ZeRO the passing part is an upper bound: DeepSpeed runs without autocast, which keeps some inputs twice.
    """
    return {
        name: sum(standing(whole, processes=devices.count, cast=cast, **options).values()) + sum(passing.values())
        for name, options in PLACEMENTS.items()
    }


def usable(memory: int) -> float:
    """The usable bytes of a device's memory."""
    return (1 - RESERVE) * memory


def host(whole: Held, start: str, target: tuple[int, int], rank: int, processes: int) -> dict[str, int]:
    """Bytes of CPU memory that one machine with so many processes needs.

    loading: every process reads the whole model, whatever ZeRO divides later. decomposition: in addition, per process, for the
    largest target (m, n): a float32 copy and its factors U, S and V (for a randomised start, `rank` columns of each), without the
    libraries' workspace. offloaded: what ZeRO-3 keeps there when it offloads, if this is the only machine.
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
    """The part of plan.plan about devices, as pairs of a name and a text."""
    devices, forms, host = f"{made['count']} × {made['name']}", made["forms"], made["host"]
    available = usable(made["memory"])
    work = time = "unknown, because the number of rows is unknown"
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
            f"up to {_gb(available)} of {_gb(made['memory'])} per device, {100 * RESERVE:.0f} % kept free",
        ),
    ]
    for placement in forms["as planned"]["placements"] or ():
        sizes = {name: form["placements"][placement] for name, form in forms.items()}
        told = [
            f"{_gb(size)} {name}: {'fits' if size <= available else 'does not fit'}" for name, size in sizes.items()
        ]
        rows.append((f"  {placement}", ", ".join(told)))
    if not forms["as planned"]["placements"]:
        rows.append(("  unknown", "the memory that passes through the layers was not predicted"))
    count = made["processes_a_machine"]
    processes = f"{count} process{'es' if count > 1 else ''}"
    rows.append(("memory per machine", f"{_gb(host['loading'])} to load: {processes}, each with a whole model"))
    if host["decomposition"]:
        rows.append(("  PiSSA start", f"{_gb(host['decomposition'])} more, for each process's largest matrix"))
    if not made["quantized"]:  # ZeRO-3 does not divide 4-bit weights
        rows.append(("  ZeRO-3, offloaded", f"{_gb(host['offloaded'])} while training, over all machines"))
    return [*rows, ("", "These predictions have not been compared with a GPU.")]


def _hours(low: float, high: float) -> str:
    digits = 1 if high >= 1 else 3
    return f"{low:.{digits}f} to {high:.{digits}f} h"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
