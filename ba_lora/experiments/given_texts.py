"""Evaluations on given texts in an experiment file: measured by likelihoods, without generating anything.

evaluate:
  solutions: {data: "solutions:gsm8k", limit: 500}   # loss on the reference solutions of GSM8K's test problems, in the run's template
  retention: {data: retention}                       # what is kept of the base (eval.retention)
  crows_pairs: {data: "benchmark:crows_pairs"}       # a benchmark of bias; benchmark:NAME:HALF takes one half of its items
tuning: {data: held-out, ...}                        # the loss on the rows of --validation_share at the last step; the lowest is best
"""

from collections.abc import Iterable

from eval.all import BIAS
from eval.choices.halves import HALVES

from ..errors import UserError, choose

BENCHMARK, RETENTION, SOLUTIONS, HELD_OUT = KINDS = ("benchmark", "retention", "solutions", "held-out")
PROBLEMS = ("gsm8k",)  # whose solutions can be measured


def kind_of(data: str) -> str | None:
    """The kind of an evaluation on given texts, by its `data`; None for any other."""
    kind = data.partition(":")[0]
    return kind if kind in KINDS else None


def are_given(evaluations: Iterable) -> bool:
    """Return True if evaluations are on given texts. Raises UserError if some are and others are not."""
    kinds = {bool(kind_of(evaluation.data)) for evaluation in evaluations}
    if len(kinds) > 1:
        raise UserError(
            f"an experiment cannot mix evaluations on given texts ({', '.join(KINDS)}) with answers; make two files"
        )
    return kinds == {True}


def check(data: str) -> None:
    """Raise UserError if an evaluation on given texts names something that is not known."""
    kind, _, rest = data.partition(":")
    name, _, half = rest.partition(":")
    if kind == BENCHMARK:
        choose("benchmark", name, BIAS)
        if half:
            choose("half", half, HALVES)
    elif kind == SOLUTIONS:
        choose("solutions of", rest, PROBLEMS)
    elif rest:
        raise UserError(f"evaluation '{data}' takes nothing after {kind}; write {kind}")


def is_loss(data: str) -> bool:
    """Return True if a lower score is better, in nats."""
    return kind_of(data) in (RETENTION, SOLUTIONS, HELD_OUT)


def shown(data: str, score: float) -> str:
    """A score in a line of progress."""
    return f"{score:.4f} nats" if is_loss(data) else f"{100 * score:.1f}%"
