"""How a training is started: in this process, or by torchrun or the deepspeed launcher on several.

The environment says how many, in the launchers' own words:
    NPROC                    processes on this machine; by default one for each GPU, else one
    LAUNCHER                 torchrun (default) or deepspeed
    NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT      several machines: run the same command on each of them
The batch is cut so that an optimiser step always has the config's effective_batch_size.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch

from .arguments import TrainArguments
from .errors import UserError, choose

LAUNCHERS = ("torchrun", "deepspeed")
TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def _whole(name: str, default: int, lowest: int = 1) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or int(text) < lowest:
        raise UserError(f"{name} is '{text}'; give a whole number of at least {lowest}")
    return int(text)


def processes() -> tuple[int, int]:
    """(processes on this machine, machines)."""
    return _whole("NPROC", max(torch.cuda.device_count(), 1)), _whole("NNODES", 1)


def _machines(nodes: int) -> list[str]:
    if nodes == 1:
        return ["--standalone"]
    address = os.environ.get("MASTER_ADDR")
    if not address:
        raise UserError(f"NNODES is {nodes} and MASTER_ADDR is not set; give the first machine's address")
    rank, port = _whole("NODE_RANK", 0, lowest=0), _whole("MASTER_PORT", 29500)
    return ["--nnodes", str(nodes), "--node_rank", str(rank), "--master_addr", address, "--master_port", str(port)]


def command(arguments: TrainArguments, words: list[str]) -> list[str] | None:
    """The command that trains `words` of train.py on several processes; None when one, this one, is enough.

    Raises UserError when the effective batch cannot be cut evenly, or the launcher lacks a value.
    """
    here, nodes = processes()
    arguments.accumulation(here * nodes)
    if here * nodes == 1 and not arguments.deepspeed:
        return None
    launcher = choose("LAUNCHER", os.environ.get("LAUNCHER") or "torchrun", LAUNCHERS)
    if launcher == "torchrun":
        start = ["torch.distributed.run", "--nproc_per_node", str(here), *_machines(nodes)]
    elif nodes > 1:
        raise UserError(
            f"NNODES is {nodes} with LAUNCHER=deepspeed, which takes its machines from a host file; "
            "use LAUNCHER=torchrun, or start train.py with the deepspeed command and its --hostfile"
        )
    else:
        start = ["deepspeed.launcher.runner", "--no_local_rank", "--num_accelerators", str(here)]
    return [sys.executable, "-m", *start, str(TRAIN), *words]


def start(words: list[str]) -> None:
    """Run a command from `command` to its end. Raises UserError when a process of it fails."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes()[0], 1)))
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    done = subprocess.run(words, env=environment)
    if done.returncode:
        raise UserError(f"the training ended with status {done.returncode}; its own error stands above")
