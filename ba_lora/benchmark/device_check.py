"""Check the project on a device in one call: scripts/gpu_check.sh, or python -m ba_lora.benchmark.device_check.

Each part writes one JSON file as it ends. Weights are random and made on the device. Needs torch, transformers, peft, accelerate,
safetensors and filelock, with what they require.
"""

import argparse
from pathlib import Path

from ..errors import Parser, UserError, choose, run_cli
from ..folders.ownership import claimed
from .device_table import PARTS, RESULTS

MINUTES = 7  # for everything, on an H100


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="scripts/gpu_check.sh", description=__doc__.partition("\n\n")[2], epilog=f"parts: {', '.join(PARTS)}"
    )
    add = parser.add_argument
    add("--device", default="cuda", help="cuda or cpu (default: %(default)s)")
    add("--smoke", action="store_true", help="tiny sizes, to try the script")
    add("--out", type=Path, help="folder for one JSON file per part (default: results/gpu; needed with --smoke)")
    add("--only", nargs="+", metavar="PART", help="parts to run (default: all)")
    add(
        "--minutes",
        type=float,
        default=MINUTES,
        help="time for all parts; later ones are left out (default: %(default)s)",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(words: list[str] | None = None) -> None:
    args = make_parser().parse_args(words)
    choose("--device", args.device, ("cuda", "cpu"))
    chosen = [choose("--only", name, PARTS) for name in args.only or PARTS]
    if args.smoke and (args.out is None or args.out.resolve() == RESULTS):
        raise UserError("--smoke writes no results: give another folder than results/gpu with --out")
    with claimed(args.out or RESULTS, "device check", "--out") as out:
        from .device_run import run_parts  # imports torch, which takes seconds

        run_parts(chosen, args.device, args.smoke, out, args.minutes)


if __name__ == "__main__":
    run_cli(main)
