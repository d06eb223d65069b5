"""Run by test_decomposition.py in each of two processes: they start the same model from PiSSA, together; then one fails."""

import hashlib
import json
from pathlib import Path

import torch
from torch import distributed

from ba_lora.methods import decomposition
from ba_lora.methods.attach import attach
from tests.common import small_llama


def main(folder: Path, process: int) -> None:
    """`folder` holds the cache; it also gets said-0.json and said-1.json, each with the results of one process in each
    check."""
    torch.set_num_threads(1)  # a forked process does not have the threads of its parent
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=process, world_size=2)
    exact, made = decomposition.exact, []

    def other_signs(matrix, count):
        """Each process by itself would start from its own triplets."""
        made.append(matrix.shape)
        triplets, sign = exact(matrix, count), 1 - 2 * process
        return decomposition.Triplets(triplets.u * sign, triplets.s, triplets.vh * sign)

    def failing(matrix, count):
        if process == 1:
            raise ValueError("no such matrix")
        return exact(matrix, count)

    said = {}
    decomposition.exact = other_signs
    for check in ("first", "second"):
        made.clear()
        model = attach(small_llama(), "pissa", rank=4, alpha=6, decomposition_cache=folder / "cache")
        numbers = torch.cat([tensor.flatten() for tensor in model.state_dict().values()]).detach()
        said[check] = {
            "hash": hashlib.sha256(numbers.numpy().tobytes()).hexdigest(),
            "made": len(made),
            "decomposed": model.decomposition["decomposed"],
            "from_cache": model.decomposition["from_cache"],
            "residual": model.decomposition["residual"],
        }
    decomposition.exact = failing
    try:
        attach(small_llama(), "pissa", rank=4, alpha=4)
    except Exception as error:
        said["failure"] = f"{type(error).__name__}: {error}"
    (folder / f"said-{process}.json").write_text(json.dumps(said))
    distributed.barrier()
    distributed.destroy_process_group()
