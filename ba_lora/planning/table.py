"""GPU requirements of the published runs, as the table of docs/gpu.md: python -m ba_lora.planning.table [CONFIG ...]

A cell is the first placement that fits: "c" with --gradient_checkpointing, "z" with ZeRO-3, both if both are needed, with the
bytes per device and the hours.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Parser, run_cli
from ..files import PROJECT
from ..training.command_line import parse
from .devices import read_devices

if TYPE_CHECKING:
    from .fit import Fit

FOLDER = PROJECT / "configs" / "nlg"
DEVICES = ("1xA40", "2xA40", "4xA40", "8xA40", "1xH100-80")


def published() -> list[Path]:
    """One config for each model, version and rank; its three data sets cost the same here."""
    return sorted(file for file in FOLDER.glob("*-metamath-*.yaml"))


def row(config: Path) -> str:
    """One line of the table, in Markdown."""
    arguments = parse(["--config", str(config), "--dry_run"])
    from .fit import first_fit, samples_of  # torch takes seconds; --help and refusals do without it
    from .plan import flops_of
    from .shapes import job_of

    cells = [_cell(first_fit(arguments, read_devices(devices))) for devices in DEVICES]
    work = flops_of(arguments, job_of(arguments), samples_of(arguments))
    return f"| {config.stem.replace('-metamath', '')} | {work:.2e} | {' | '.join(cells)} |"


def _cell(fit: "Fit | None") -> str:
    if fit is None:
        return "does not fit"
    mark = "c" * fit.checkpointing + "z" * (fit.placement == "ZeRO-3")
    low, high = fit.hours
    return f"{fit.size / 1e9:.1f} GB{' ' * bool(mark)}{mark}, {low:.1f}–{high:.1f} h"


def main() -> None:
    parser = Parser(prog="python -m ba_lora.planning.table", description=__doc__.partition("\n")[0])
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
