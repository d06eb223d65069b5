"""A simulated driver: an nvidia-smi that gives one answer."""

import os
from pathlib import Path

EIGHT = "\n".join(["550.54.15, NVIDIA A40, 46068, 1"] * 8)


def answer(folder: Path, text: str, status: int = 0) -> str:
    """Put an nvidia-smi into `folder` that prints `text` and ends with `status`; return the PATH that finds it first."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH'].removeprefix(f'{folder}:')}"
