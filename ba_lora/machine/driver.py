"""The GPUs that the NVIDIA driver sees, without torch, and the build of torch that suits a driver.

nvidia-smi is asked first. Where it is missing or fails (a container without it, a driver that was replaced since the machine
started), the device files and the kernel's own report are read.

Sources of BUILDS: for the lowest driver of a CUDA version, NVIDIA's page "Minor Version Compatibility" (CUDA Compatibility; table 1: 13.x from
580, 12.x from 525) and the "CUDA Toolkit Release Notes" (525.60.13, the first driver of CUDA 12.0, as the full number); for the packages,
download.pytorch.org/whl/cu126, which has the tested versions of torch.
"""

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

SECONDS = 4  # for an answer of nvidia-smi; without it the device files are read
NOTHING_FOUND = 6  # its exit status if the driver sees no GPU
QUERY = ("--query-gpu=driver_version,name,memory.total,memory.used", "--format=csv,noheader,nounits")
DEVICES, KERNEL = "/dev/nvidia[0-9]*", "/proc/driver/nvidia/version"
OTHERS = ("/dev/dxg", "/dev/kfd")  # GPUs under WSL, and of AMD
TORCH = "torch>=2.11,<2.14"  # as in pyproject.toml


class Build(NamedTuple):
    """The builds of torch for one CUDA version: the lowest driver that runs them, and their package index."""

    cuda: int
    driver: tuple[int, ...]
    index: str


# Newest first.
BUILDS = (
    Build(13, (580,), "https://download.pytorch.org/whl/cu130"),
    Build(12, (525, 60, 13), "https://download.pytorch.org/whl/cu126"),
)


class Driver(NamedTuple):
    """version: as in 550.54.15; None if it is not known. trouble: why nvidia-smi gives no answer.

    total, used: MiB of each GPU's memory; () if nvidia-smi gives no answer.
    """

    version: str | None
    gpus: int
    name: str = ""
    total: tuple[int, ...] = ()
    used: tuple[int, ...] = ()
    trouble: str = ""


def may_have_gpus() -> bool:
    """Return False if nothing on this machine hints at a GPU; takes no time."""
    return bool(shutil.which("nvidia-smi") or glob.glob(DEVICES) or any(map(os.path.exists, OTHERS)))


def seen() -> Driver | None:
    """The driver and its GPUs; None without a driver or without a GPU that it sees."""
    program = shutil.which("nvidia-smi")
    status, answer = _ask(program) if program else (None, "")
    if status == 0:
        return _read(answer)
    if status == NOTHING_FOUND:
        return None
    files, version = glob.glob(DEVICES), _kernel_version()
    trouble = f"nvidia-smi fails: {_last_line(answer)}" if program else ""
    return Driver(version, len(files), trouble=trouble) if files and version else None


@cache
def _ask(program: str) -> tuple[int | None, str]:
    """(exit status, output) of nvidia-smi; the status is None if it does not start or does not answer in time."""
    try:
        done = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=SECONDS, errors="replace")
    except subprocess.TimeoutExpired:
        return None, f"no answer in {SECONDS} s"
    except OSError as error:
        return None, str(error)
    return done.returncode, done.stdout + done.stderr * bool(done.returncode)


def _read(answer: str) -> Driver | None:
    """The driver in nvidia-smi's lines "version, name, MiB, MiB used"; None without such a line ("No devices were found")."""
    lines = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]
    lines = [line for line in lines if len(line) == 4 and re.fullmatch(r"\d+(\.\d+)+", line[0])]
    if not lines:
        return None
    memory = [line[2:] for line in lines if line[2].isdigit() and line[3].isdigit()]  # some GPUs report "[N/A]"
    total, used = zip(*memory, strict=True) if len(memory) == len(lines) else ((), ())
    return Driver(lines[0][0], len(lines), lines[0][1], tuple(map(int, total)), tuple(map(int, used)))


def _kernel_version() -> str | None:
    try:
        report = Path(KERNEL).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b\d{3}\.\d+(\.\d+)*\b", report)
    return found[0] if found else None


def _last_line(answer: str) -> str:
    return (answer.strip().splitlines() or ["no message"])[-1].strip()[:200]


def numbers(version: str | None) -> tuple[int, ...]:
    """ "550.54.15" → (550, 54, 15); () without a number."""
    return tuple(map(int, re.findall(r"\d+", version or "")))


def lowest_for(cuda: str | None) -> str | None:
    """The lowest driver for a build with this CUDA version ("13.0"); None for a build that is not in the table."""
    return next((_text(build.driver) for build in BUILDS if numbers(cuda)[:1] == (build.cuda,)), None)


def remedy_for(version: str | None) -> str:
    """The installation of torch that suits a driver, in words."""
    known = numbers(version)
    if not known:
        return "install a build of torch for this driver"
    build = next((build for build in BUILDS if known >= build.driver), None)
    if build is None:
        return f"update the driver to {_text(BUILDS[-1].driver)} or newer; no build of {TORCH} runs on this one"
    pip = f"{shlex.quote(sys.executable)} -m pip install --upgrade"  # without it pip keeps any torch of these versions
    return f'install a build for this driver: {pip} "{TORCH}" --index-url {build.index}'


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
