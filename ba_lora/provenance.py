"""The origin of a result: versions, commit, machine. Every run.json and score holds it."""

import os
import platform
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import psutil

from . import __version__
from .errors import redacted

PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "deepspeed", "safetensors", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of this package, of Python, and of every package that affects a result."""
    found = {"ba-lora": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """The checkout's commit, with "+changes" if files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


def machine() -> dict:
    """CPU, cores, threads and accelerators, without anything that identifies the host."""
    import torch

    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def record() -> dict:
    """Versions, commit, machine and the command."""
    return {
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "command": [Path(sys.argv[0]).name, *map(redacted, sys.argv[1:])],
    }


class PeakMemory:
    """The largest resident memory of this process while the block runs, in bytes, sampled every 20 ms."""

    def __enter__(self) -> "PeakMemory":
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process(os.getpid())
        while True:
            self.peak = max(self.peak, process.memory_info().rss)
            if self._stop.wait(0.02):
                return

    def __exit__(self, *error) -> None:
        self._stop.set()
        self._thread.join()
