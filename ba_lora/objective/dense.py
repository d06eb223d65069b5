"""Task loss plus weighted regularizers, from logits. Generation has one row per token, classification one row per sample.

Generation: position t predicts token t + 1, and counts if labels[t + 1] is not -100. The task loss and all three
regularizers use the same rows. Token terms are sums over the rows, divided by the number of rows in the whole optimiser step
(over micro-batches and processes), so the loss does not depend on how the batch is split. The spectrum term is computed per
micro-batch and averaged over the micro-batches and processes of the step.

Classification: task and consistency are sums over the samples, divided by the number of samples in the step; diversity and
spectrum are both computed per micro-batch.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy

from . import regularizers
from .settings import TERMS, Objective


def dense_objective(
    logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    objective: Objective,
    lambdas: tuple[float, float, float],
    *,
    num_items: Tensor | float | None = None,
    spectrum_scale: float = 1.0,
    all_terms: bool = False,
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Loss and terms of rows that are already selected and shifted.

    logits, teacher_logits: (N, V); targets: (N,); lambdas: the current weights; num_items: rows in the whole step (default
    N); spectrum_scale: 1/(micro-batches in the step × processes). Returns (loss, terms). Terms are unweighted; task,
    consistency and diversity are sums over the rows / num_items; a term with weight 0 is None unless all_terms. loss = task
    + λ1·consistency + λ2·diversity + λ3·spectrum_scale·spectrum.
    """
    rows, items = len(targets), _items(num_items, len(targets))
    task = _cross_entropy(logits, targets, items)
    terms = _regularize(logits, teacher_logits, logits, objective, lambdas, all_terms) | {"task": task}
    for name in ("consistency", "diversity"):
        terms[name] = None if terms[name] is None else terms[name] * rows / items
    return _weigh(terms, lambdas, (1.0, 1.0, spectrum_scale))


def classifier_objective(
    logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    objective: Objective,
    lambdas: tuple[float, float, float],
    *,
    features: Tensor | None = None,
    num_items: Tensor | float | None = None,
    share: float = 1.0,
    regression: bool = False,
    all_terms: bool = False,
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Loss and terms of a micro-batch of samples.

    logits, teacher_logits: (N, D); labels: (N,); lambdas: the current weights; features: (N, d), the input of diversity and
    spectrum instead of the logits; num_items: samples in the whole step (default N); share: 1/(micro-batches in the step ×
    processes). Returns (loss, terms). Terms are unweighted; task and consistency are sums over the samples / num_items,
    diversity and spectrum are the micro-batch's own; a term with weight 0 is None unless all_terms. loss = task +
    λ1·consistency + share·(λ2·diversity + λ3·spectrum). The task loss is the cross-entropy, or the squared error for
    regression.
    """
    rows, items = len(labels), _items(num_items, len(labels))
    looked_at = logits if features is None else features
    if regression:
        working = regularizers.working(logits)
        task = (working.squeeze(-1) - labels.to(working)).square().sum() / items
    else:
        task = _cross_entropy(logits, labels.long(), items)
    terms = _regularize(logits, teacher_logits, looked_at, objective, lambdas, all_terms) | {"task": task}
    terms["consistency"] = None if terms["consistency"] is None else terms["consistency"] * rows / items
    return _weigh(terms, lambdas, (1.0, share, share))


def _items(num_items: Tensor | float | None, rows: int) -> Tensor | float:
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
    lambdas: tuple[float, float, float],
    all_terms: bool,
) -> dict[str, Tensor | None]:
    """Means over these rows; None for a term that is not wanted. looked_at: the input of diversity and spectrum."""
    terms: dict[str, Tensor | None] = dict.fromkeys(TERMS)
    lambda1, lambda2, lambda3 = lambdas
    if lambda1 > 0 or (all_terms and teacher_logits is not None):
        if objective.consistency == "kl":
            terms["consistency"] = regularizers.consistency_kl(logits, teacher_logits, objective.temperature)
        else:
            terms["consistency"] = regularizers.consistency_mse(logits, teacher_logits)
    if lambda2 > 0 or all_terms:
        if objective.diversity == "covariance":
            terms["diversity"] = regularizers.diversity_covariance(looked_at)
        else:
            terms["diversity"] = regularizers.diversity_entropy(looked_at, objective.top_k)
    if lambda3 > 0 or all_terms:
        terms["spectrum"] = regularizers.svd_ratio(looked_at, objective.svd_k, objective.svd_norm)
    return terms


def _weigh(
    terms: dict[str, Tensor | None], lambdas: tuple[float, float, float], scales: tuple[float, float, float]
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """(task + Σ λ·scale·term over the active terms, terms)."""
    weights = dict(
        zip(TERMS, (1.0, *(weight * scale for weight, scale in zip(lambdas, scales, strict=True))), strict=True)
    )
    loss = sum(weights[name] * term for name, term in terms.items() if term is not None and weights[name] > 0)
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
