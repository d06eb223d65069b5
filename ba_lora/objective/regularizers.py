"""The paper's regularizers, one function each, written for comparison with the equations.

Source: BA-LoRA, arXiv 2408.04556, versions v1-v5 and v6-v8/ICLR. The full text of no version was available, so the equations
come from public notes and from the published code (docs/DEVIATIONS.md says which comes from where).

Every function takes the logits of rows that are already selected (one row per predicted token, or one per sample), reduces
bfloat16 and float16 in float32, keeps float64, and returns a scalar to be minimised. Without rows the result is a zero that
is still connected to the graph.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from .spectrum import singular_values


def working(logits: Tensor) -> Tensor:
    """The same values in the precision used for sums: float64 if they are float64, else float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _check(logits: Tensor, other: Tensor | None = None) -> None:
    if logits.dim() != 2:
        raise ValueError(f"logits must be (rows, classes), got a tensor of shape {tuple(logits.shape)}")
    if other is not None and other.shape != logits.shape:
        raise ValueError(
            f"student logits {tuple(logits.shape)} and teacher logits {tuple(other.shape)} differ in shape"
        )


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(z/T) for each row, in nats. logits: (N, V), N may be 0. Returns (N,)."""
    log_p = log_softmax(working(logits) / temperature, dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def consistency_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · mean over rows of KL(p_T ‖ p_S), both softened by the temperature T, in nats.

    student_logits, teacher_logits: (N, V). Equation: CR for generation (T = 1 in v5), for both tasks in v6-v8.
    Raises ValueError for a temperature that is not positive.
    """
    _check(student_logits, teacher_logits)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if len(student_logits) == 0:
        return student_logits.sum() * 0.0
    student = log_softmax(working(student_logits) / temperature, dim=-1)  # (N, V)
    teacher = log_softmax(working(teacher_logits) / temperature, dim=-1)  # (N, V)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1).mean()


def consistency_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over all entries of (ẑ_S − ẑ_T)², where ẑ is a row of logits divided by its Euclidean norm.

    student_logits, teacher_logits: (N, D). Equation: CR for understanding in v1-v5.
    """
    _check(student_logits, teacher_logits)
    if len(student_logits) == 0:
        return student_logits.sum() * 0.0
    student = normalize(working(student_logits), dim=-1)
    teacher = normalize(working(teacher_logits), dim=-1)
    return (student - teacher).square().mean()


def diversity_entropy(logits: Tensor, top_k: int | None = None) -> Tensor:
    """−mean over rows of the entropy of p = softmax(z), in nats.

    logits: (N, V). With top_k, the softmax runs over only the top_k largest logits of each row. Equation: DR for generation;
    the whole vocabulary in v5, a renormalised top-K set in v6-v8. Raises ValueError unless top_k is between 1 and V.
    """
    _check(logits)
    if top_k is not None and not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k must lie between 1 and the {logits.shape[-1]} classes, got {top_k}")
    if len(logits) == 0:
        return logits.sum() * 0.0
    kept = working(logits)
    if top_k is not None:
        kept = kept.topk(top_k, dim=-1).values  # (N, K)
    return -entropy(kept).mean()


def diversity_covariance(logits: Tensor) -> Tensor:
    """(1/D) · Σ_{i≠j} C_ij², where C = Z̃ᵀZ̃ / (N − 1) and Z̃ is Z with the mean over rows removed.

    logits: (N, D). Covariance needs two rows; with fewer, the result is a connected zero. Equation: DR for understanding,
    all versions.
    """
    _check(logits)
    rows, classes = logits.shape
    if rows < 2:
        return logits.sum() * 0.0
    centred = working(logits)
    centred = centred - centred.mean(0, keepdim=True)
    covariance = centred.T @ centred / (rows - 1)  # (D, D)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / classes


def svd_ratio(logits: Tensor, k: int, norm: str = "nuclear") -> Tensor:
    """−Σ_{i≤k} σ_i / Σ_j σ_j ("nuclear"), or −Σ_{i≤k} σ_i / ‖Z‖_F ("frobenius"); σ are Z's singular values, exact.

    logits: (N, V), not centred. Singular values that are rounding noise count as 0 and carry no gradient
    (`spectrum.singular_values` gives the threshold). Equation: SVDR; nuclear in v1-v5 and for understanding, Frobenius for
    generation in v6-v8. The nuclear form is the constant −1 once k ≥ min(N, V). Raises ValueError for k < 1 or an unknown
    norm.
    """
    _check(logits)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if norm not in ("nuclear", "frobenius"):
        raise ValueError(f"norm must be 'nuclear' or 'frobenius', got '{norm}'")
    values = working(logits)
    if len(values) == 0:
        return logits.sum() * 0.0
    if norm == "nuclear" and k >= min(values.shape) and values.any():
        return values.sum() * 0.0 - 1.0  # the whole spectrum: constant, with a gradient of exactly 0
    try:
        sigma = singular_values(values)  # (min(N, V),), descending
    except torch.linalg.LinAlgError:
        if values.isfinite().all():
            raise
        return values.sum() * torch.nan  # not a failure of the SVD: the check of the loss names the step
    total = sigma.sum() if norm == "nuclear" else torch.linalg.vector_norm(sigma)
    if total == 0:
        return values.sum() * 0.0
    return -sigma[:k].sum() / total
