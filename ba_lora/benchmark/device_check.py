"""Check the project on a device in one call: scripts/gpu_check.sh, or python -m ba_lora.benchmark.device_check.

Each part writes one JSON file as it ends. Weights are random and made on the device. Needs torch, transformers, peft, accelerate,
safetensors and filelock, with what they require.
"""

import argparse
import gc
import os
import shutil
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from .. import provenance
from ..errors import RunFailure, UserError, choose, one_line, run_cli
from ..files import PROJECT, write_json
from . import device_commands as commands
from . import device_parts as parts
from .clock import free

RESULTS = PROJECT / "results" / "gpu"
MINUTES = 7  # for everything, on an H100
BODIES = ("llama-2-7b", "llama-3-8b")
# {part: function of (device, smoke, an empty folder, the time by which it must end)}. The first are the most important.
PARTS: dict[str, Callable] = {
    "exactness": lambda device, smoke, folder, end: parts.exactness(device, smoke),
    "objective": lambda device, smoke, folder, end: parts.objective_alone(device, smoke),
    **{
        f"steps-{body}": lambda device, smoke, folder, end, body=body: commands.steps(
            "tiny" if smoke else body, device, smoke, folder
        )
        for body in BODIES
    },
    "train-tiny": commands.train_embedded,
    "train-llama-2-7b": lambda device, smoke, folder, end: commands.train_body(
        "tiny" if smoke else "llama-2-7b", device, smoke, folder, end
    ),
    "start": lambda device, smoke, folder, end: parts.start(device, smoke),
}


def stack(device: str) -> dict:
    """What runs: the card, its driver, and the versions of the libraries."""
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    memory = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None
    record = provenance.record()
    return {
        "device": device,
        "card": card,
        "memory": memory,
        "driver": _driver() if device == "cuda" else None,
        "cuda": torch.version.cuda,
        "versions": record["versions"],
        "commit": record["commit"],
    }


def _driver() -> str | None:
    """The driver's version by nvidia-smi; None without that program."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout.split() or [None])[0]


def run_part(name: str, device: str, smoke: bool, end: float) -> dict:
    """{"part", "seconds", "result"} of one part, or a "failure" in place of the result."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ba-lora-check-") as folder:
        try:
            found = {"result": PARTS[name](device, smoke, Path(folder), end)}
        except Exception as error:  # the other parts go on
            if not isinstance(error, (UserError, RunFailure)):
                traceback.print_exc()
            found = {"failure": one_line(f"{type(error).__name__}: {error}").replace(folder, "FOLDER")[:700]}
    gc.collect()
    free(device)
    if name == "exactness" and "result" in found:
        wrong = [row for row in found["result"] if not row["value"] <= row["limit"]]  # NaN is wrong, too
        if wrong:
            found["failure"] = "; ".join(f"{row['what']}, {row['dtype']}: {row['value']:.3g}" for row in wrong)
    return {"part": name, "seconds": time.monotonic() - began, **found}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    if choose("--device", args.device, ("cuda", "cpu")) == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU; give --device cpu --smoke --out DIR to try the script")
    chosen = {choose("--only", name, PARTS) for name in args.only or PARTS}
    if args.smoke and (args.out is None or args.out.resolve() == RESULTS):
        raise UserError("--smoke writes no results: give another folder than results/gpu with --out")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    out, end, failures = args.out or RESULTS, time.monotonic() + 60 * args.minutes, []
    facts = stack(args.device) | {"smoke": args.smoke}
    for name in (each for each in PARTS if each in chosen):
        if time.monotonic() > end:
            found = {"part": name, "failure": f"not run: the {args.minutes:g} minutes had passed"}
        else:
            found = run_part(name, args.device, args.smoke, end)
        write_json(out / f"{name}.json", facts | found)
        said = found.get("failure", "done")
        print(f"{name}: {said}, {found.get('seconds', 0):.0f} s", flush=True)
        failures += [name] if "failure" in found else []
    print(f"written: {out}")
    if failures:
        raise RunFailure(f"these parts failed: {', '.join(failures)}; their files in {out} say why")


if __name__ == "__main__":
    run_cli(main)
