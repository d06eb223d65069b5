"""The place of this process among those of a training, as torchrun and the deepspeed launcher put it into the environment.

`signals` and `errors`, which import nothing of ours, read RANK themselves.
"""

import os


def is_first() -> bool:
    """Return True on rank 0, or if the run has only one process."""
    return int(os.environ.get("RANK", 0)) == 0


def world() -> int:
    """The number of processes of the run, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))
