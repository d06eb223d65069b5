"""Task loss plus weighted regularizers, from logits. Generation has one row per token, classification one row per sample.

Generation: position t predicts token t + 1, and counts if labels[t + 1] is not -100. The task loss and all three
regularizers use the same rows. Token terms are sums over the rows, divided by the number of rows in the whole optimiser step
(over micro-batches and processes), so the loss does not depend on how the batch is split. The spectrum term is computed per
micro-batch and averaged over the micro-batches and processes of the step.

Classification: task and consistency are sums over the samples, divided by the number of samples in the step; diversity and
spectrum are both computed per micro-batch.
"""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from . import regularizers
from .settings import REGULARIZERS, TERMS, Objective
from .sketch import Sketch, sketched_kl


def _kl(z: Tensor, teacher: Tensor | Sketch, form: Objective) -> Tensor:
    """The consistency of the student's logits with the teacher's, or with a sketch of them."""
    compute = sketched_kl if isinstance(teacher, Sketch) else regularizers.consistency_kl
    return compute(z, teacher, form.temperature)


# The mean over the rows, or the statistic, of each (regularizer, form). Arguments: the student's logits or features, the
# teacher's logits, the objective.
FORMS: dict[tuple[str, str], Callable[[Tensor, Tensor | None, Objective], Tensor]] = {
    ("consistency", "kl"): _kl,
    ("consistency", "mse"): lambda z, teacher, form: regularizers.consistency_mse(z, teacher),
    ("diversity", "entropy"): lambda z, teacher, form: regularizers.diversity_entropy(z, form.top_k),
    ("diversity", "covariance"): lambda z, teacher, form: regularizers.diversity_covariance(z),
    ("spectrum", "nuclear"): lambda z, teacher, form: regularizers.svd_ratio(z, form.svd_k, "nuclear"),
    ("spectrum", "frobenius"): lambda z, teacher, form: regularizers.svd_ratio(z, form.svd_k, "frobenius"),
}


def _without_autocast(objective: Callable) -> Callable:
    """The same function with every product in its arguments' own precision: autocast would round float32 rows to bfloat16."""

    @wraps(objective)
    def compute(logits: Tensor, *more, **options):
        with torch.autocast(logits.device.type, enabled=False):
            return objective(logits, *more, **options)

    return compute


@_without_autocast
def dense_objective(
    logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    objective: Objective,
    lambdas: tuple[float, ...],
    *,
    num_items: Tensor | float | None = None,
    spectrum_scale: float = 1.0,
    all_terms: bool = False,
    teacher_rows: Tensor | None = None,
    teacher_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Loss and terms of rows that are already selected and shifted.

    logits, teacher_logits: (N, V); a sketch may stand for the teacher's. targets: (N,); lambdas: the current weights; num_items: rows in the whole step (default
    N); spectrum_scale: 1/(micro-batches in the step × processes). Returns (loss, terms). Terms are unweighted; task,
    consistency and diversity are sums over the rows / num_items; a term with weight 0 is None unless all_terms. loss = task
    + λ1·consistency + λ2·diversity + λ3·spectrum_scale·spectrum.

    teacher_rows (n,): the rows that teacher_logits (n, V) are of, if not all; in the consistency each weighs teacher_weight.
    """
    items = divisor(num_items, len(targets))
    task = _cross_entropy(logits, targets, items)
    means = _regularize(logits, teacher_logits, logits, objective, lambdas, all_terms, teacher_rows)
    rows = _weights_in_step("per_row", len(targets), teacher_rows, teacher_weight)
    return _total(task, means, lambdas, rows, items, spectrum_scale)


@_without_autocast
def classifier_objective(
    logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    objective: Objective,
    lambdas: tuple[float, ...],
    *,
    features: Tensor | None = None,
    num_items: Tensor | float | None = None,
    share: float = 1.0,
    regression: bool = False,
    all_terms: bool = False,
    teacher_rows: Tensor | None = None,
    teacher_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Loss and terms of a micro-batch of samples.

    logits, teacher_logits: (N, D); labels: (N,); lambdas: the current weights; features: (N, d), the input of diversity and
    spectrum instead of the logits; num_items: samples in the whole step (default N); share: 1/(micro-batches in the step ×
    processes). Returns (loss, terms). Terms are unweighted; task and consistency are sums over the samples / num_items,
    diversity and spectrum are the micro-batch's own; a term with weight 0 is None unless all_terms. loss = task +
    λ1·consistency + share·(λ2·diversity + λ3·spectrum). The task loss is the cross-entropy, or the squared error for
    regression. teacher_rows, teacher_weight: see `dense_objective`.
    """
    items = divisor(num_items, len(labels))
    looked_at = logits if features is None else features
    if regression:
        working = regularizers.working(logits)
        task = (working.squeeze(-1) - labels.to(working)).square().sum() / items
    else:
        task = _cross_entropy(logits, labels.long(), items)
    means = _regularize(logits, teacher_logits, looked_at, objective, lambdas, all_terms, teacher_rows)
    rows = _weights_in_step("per_sample", len(labels), teacher_rows, teacher_weight)
    return _total(task, means, lambdas, rows, items, share)


@torch.no_grad()
def observed(logits: Tensor, targets: Tensor, num_items: Tensor | float | None = None) -> dict[str, Tensor]:
    """What `chunked_objective` adds to its terms with `observe`, from the logits (N, V) and targets (N,)."""
    items = divisor(num_items, len(targets))
    entropies, right = regularizers.entropy(logits), logits.argmax(-1) == targets
    return {"entropy": entropies.sum() / items, "accuracy": right.sum() / items}


def divisor(num_items: Tensor | float | None, rows: int) -> Tensor | float:
    """The divisor of the sums; at least 1, for a process without rows."""
    items = rows if num_items is None else num_items
    return items.clamp(min=1) if isinstance(items, Tensor) else max(items, 1)


def _cross_entropy(logits: Tensor, targets: Tensor, items: Tensor | float) -> Tensor:
    working = regularizers.working(logits)
    return cross_entropy(working, targets, reduction="sum") / items if len(targets) else working.sum() * 0.0


def _regularize(
    logits: Tensor,
    teacher_logits: Tensor | None,
    looked_at: Tensor,
    objective: Objective,
    lambdas: tuple[float, ...],
    all_terms: bool,
    teacher_rows: Tensor | None,
) -> list[Tensor | None]:
    """Means over these rows; None for a term that is not wanted. looked_at: the input of the terms that use no teacher."""
    means: list[Tensor | None] = []
    compared = logits if teacher_rows is None else logits.index_select(0, teacher_rows)
    for each, weight in zip(REGULARIZERS, lambdas, strict=True):
        is_possible = teacher_logits is not None or not each.uses_teacher
        if weight > 0 or (all_terms and is_possible):
            compute = FORMS[each.name, getattr(objective, each.option)]
            means.append(compute(compared if each.uses_teacher else looked_at, teacher_logits, objective))
        else:
            means.append(None)
    return means


def _weights_in_step(flag: str, rows: int, teacher_rows: Tensor | None, teacher_weight: float) -> list[float | None]:
    """For each regularizer, the summed weight of its rows if it is a mean over the rows of the step, by its `flag`; else None."""
    taught = rows if teacher_rows is None else len(teacher_rows)
    return [
        (taught * teacher_weight if each.uses_teacher else rows) if getattr(each, flag) else None
        for each in REGULARIZERS
    ]


def _total(
    task: Tensor,
    means: list[Tensor | None],
    lambdas: tuple[float, ...],
    rows: list[float | None],
    items: Tensor | float,
    share: float,
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """(task + Σ λ·term over the active terms, terms).

    rows: for each regularizer, the weight of these rows among the `items` of the whole step if it is a mean over them. The others
    (None) are statistics of the micro-batch and enter the loss times `share`.
    """
    terms: dict[str, Tensor | None] = {"task": task}
    loss = 1.0 * task  # not the same tensor, because a trainer may scale the loss in place
    for name, mean, weight, of_step in zip(TERMS[1:], means, lambdas, rows, strict=True):
        terms[name] = mean * of_step / items if of_step is not None and mean is not None else mean
        if weight > 0:
            loss = loss + (weight * share if of_step is None else weight) * terms[name]
    return loss, terms


def powerless(objective: Objective, rows: int, classes: int, width: int) -> dict[str, str]:
    """{term: why its gradient is 0, and the remedy} for micro-batches of `rows` rows. width: columns of the input of
    diversity and spectrum, which are classes or features."""
    found = {}
    if classes == 1 and objective.consistency == "kl":
        found["consistency"] = "one output has one class, of probability 1; use --lambda1 0"
    if classes == 1 and objective.consistency == "mse":
        found["consistency"] = "one output divided by its norm is 1 or -1; use --lambda1 0"
    if width == 1:
        found["diversity"] = "one output has no other to vary with; use --regularize features, or --lambda2 0"
    elif rows < 2 and objective.diversity == "covariance":
        found["diversity"] = "one row has no covariance; raise --micro_batch_size"
    least = min(rows, width)
    if objective.svd_norm == "nuclear" and objective.svd_k >= least:
        smaller = f"use --svd_k {least - 1}" if least == 2 else f"use --svd_k 1 to {least - 1}"
        remedy = f"{smaller}, or --regularize features" if least > 1 else "use --regularize features"
        found["spectrum"] = (
            f"the first {objective.svd_k} singular values of ({rows}, {width}) are all of them, so the ratio is 1; {remedy}"
        )
    elif least == 1:
        found["spectrum"] = (
            f"({rows}, {width}) has one singular value, so the ratio is 1; use larger micro-batches of features"
        )
    return found
