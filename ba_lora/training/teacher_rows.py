"""What the teacher's cache keeps of a row, in either form (--teacher_cache_form): its tensors, their bytes, how they are computed.

exact     u (d,) in float32 or bfloat16, and c in float64 (chunked.TeacherStats)
sketch    words (entries,), threshold and entropy (sketch.Words): of the same size for any model
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn

from ..objective.chunked import TeacherStats, stats_of
from ..objective.draw import sketch_of
from ..objective.sketch import Words

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PREFIX = "teacher_"  # of the names of the tensors in a batch


def tensors_of(facts: dict) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """{name: (shape of one row, dtype)} in a cache of `facts` (form, and width and dtype or entries and vocabulary)."""
    if facts.get("form") == "sketch":
        entries = min(facts["entries"], facts["vocabulary"])
        return {"words": ((entries,), torch.int32), "threshold": ((), torch.float32), "entropy": ((), torch.float32)}
    return {"u": ((facts["width"],), DTYPES[facts["dtype"]]), "c": ((), torch.float64)}


def row_bytes(facts: dict) -> int:
    """Bytes on disk of one row."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors_of(facts).values())


def compute(facts: dict, hidden: Tensor, head: nn.Linear, uniforms: Tensor | None) -> dict[str, Tensor]:
    """The tensors of rows with these hidden states (N, d) of the original model. uniforms: (N, 2), for a sketch."""
    if facts.get("form") == "sketch":
        return sketch_of(hidden, head.weight, facts["temperature"], uniforms, facts["entries"])._asdict()
    return stats_of(hidden, head.weight, facts["temperature"], dtype=DTYPES[facts["dtype"]])._asdict()


def uniforms_of(facts: dict, sample: int, rows: int) -> Tensor:
    """(rows, 2) numbers in [0, 1): the draws of a sample, which the data's hash, its number and the temperature fix."""
    text = f"{facts['data']} {facts['temperature']} {sample}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return torch.from_numpy(np.random.default_rng(seed).random((rows, 2)))


def of_batch(inputs: dict, vocabulary: int) -> TeacherStats | Words | None:
    """Take the teacher's rows out of a batch's `inputs`; None if it has none."""
    found = {name.removeprefix(PREFIX): inputs.pop(name) for name in list(inputs) if name.startswith(PREFIX)}
    if not found:
        return None
    return Words(**found).read(vocabulary) if "words" in found else TeacherStats(**found)
