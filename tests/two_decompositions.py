"""Started by test_decomposition.py under torchrun: two processes start the same model from PiSSA, together; then one fails.

Argument: a folder for the cache. Writes a JSON line for each process and check.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import distributed

from ba_lora import decomposition
from ba_lora.adapters import attach
from tests.common import small_llama


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    process, exact, made = distributed.get_rank(), decomposition.exact, []

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
        model = attach(small_llama(), "pissa", rank=4, alpha=6, decomposition_cache=folder)
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
