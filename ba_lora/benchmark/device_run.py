"""Run the parts of the device check, each to its end or its failure, and write one file for each."""

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
from ..errors import RunFailure, UserError, one_line
from ..files import write_json
from ..machine.devices import gpus
from . import device_commands as commands
from . import device_parts as parts
from .clock import free

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
    """The environment of the check: the card, its driver, and the versions of the libraries."""
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


def run_parts(names: list[str], device: str, smoke: bool, out: Path, minutes: float) -> None:
    """Run parts in the order of PARTS, and write OUT/PART.json as each ends; one that would begin after `minutes` is not run.

    Raises UserError without the device, and RunFailure at the end if a part failed.
    """
    if device == "cuda" and not gpus():
        raise UserError("--device cuda: torch finds no GPU; give --device cpu --smoke --out DIR to try the script")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    end, failures, facts = time.monotonic() + 60 * minutes, [], stack(device) | {"smoke": smoke}
    for name in (each for each in PARTS if each in names):
        if time.monotonic() > end:
            found = {"part": name, "failure": f"not run: the {minutes:g} minutes had passed"}
        else:
            found = run_part(name, device, smoke, end)
        write_json(out / f"{name}.json", facts | found)
        said = found.get("failure", "done")
        print(f"{name}: {said}, {found.get('seconds', 0):.0f} s", flush=True)
        failures += [name] if "failure" in found else []
    print(f"written: {out}")
    if failures:
        raise RunFailure(f"these parts failed: {', '.join(failures)}; their files in {out} say why")
