"""The peak that the planner predicts for a body, to be held against the measured one."""

from dataclasses import replace

from ..objective.settings import WEIGHTS, Objective
from ..planning.shapes import Shape, passing_of, sizes
from ..planning.standing import standing
from .cases import Case


def planned(case: Case) -> int | None:
    """Bytes that a step of "ours" takes at the sizes of a whole body, with every position trained; None for any other case."""
    if not case.body or case.layers is not None:
        return None
    job = Shape(
        model=case.body,
        dtype=case.dtype,
        attn_implementation=None,
        method="lora",
        rank=case.rank,
        alpha=float(case.rank),
        target_modules=None,
        dropout=0.0,
        objective=replace(Objective.preset(case.preset), **dict.fromkeys(WEIGHTS, 1.0)),
        micro_batch=case.batch,
        length=case.length,
        checkpointing=False,
        autocast=case.dtype == "bfloat16",
        cached=None,
        outputs=None,
        device=case.device,
    )
    passes = passing_of(job)
    return passes and sum(standing(sizes(job).held).values()) + sum(passes.values())
