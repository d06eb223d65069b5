"""The published algorithm, for comparison in the benchmark; no training uses it.

Written from a description of the published code (the ICLR form and, with the nuclear norm, the earlier one): a second model
is the teacher, the logits of student and teacher are dense, the response rows are not shifted (docs/DEVIATIONS.md), and with
the Frobenius norm the singular values come from a randomised sketch.
"""

import torch
from torch import Tensor, nn

from ..data.instruction import IGNORED
from ..objective.settings import TERMS, Objective

SKETCHED_ABOVE = 4096  # classes; a smaller vocabulary is decomposed exactly


def published_loss(
    student: nn.Module,
    teacher: nn.Module,
    objective: Objective,
    lambdas: tuple[float, ...],
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, unweighted terms) of a micro-batch; `teacher` is a second model. input_ids, attention_mask, labels: (B, T)."""
    output = student(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False)
    with torch.no_grad():
        teacher_logits = teacher(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    with torch.autocast(output.logits.device.type, enabled=False):  # the sketch's QR has no bfloat16
        terms = published_terms(output.logits, teacher_logits, labels, objective)
    weights = dict(zip(TERMS[1:], lambdas, strict=True))
    loss = output.loss + sum(weights[name] * term for name, term in terms.items())
    return loss, {"task": output.loss, **terms}


def published_terms(logits: Tensor, teacher_logits: Tensor, labels: Tensor, objective: Objective) -> dict[str, Tensor]:
    """The three unweighted regularizers, over the positions t with a label at t. logits, teacher_logits: (B, T, V)."""
    rows = labels != IGNORED
    student, teacher = logits[rows].float(), teacher_logits[rows].float()  # (N, V)
    temperature = objective.temperature
    log_p = torch.log_softmax(teacher / temperature, dim=-1)
    log_q = torch.log_softmax(student / temperature, dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    kept = student if objective.top_k is None else student.topk(objective.top_k, dim=-1).values
    log_kept = torch.log_softmax(kept, dim=-1)
    entropy = -(log_kept.exp() * log_kept).sum(-1)
    return {
        "consistency": temperature**2 * divergence.mean(),
        "diversity": -entropy.mean(),
        "spectrum": published_spectrum(student, objective.svd_k, objective.svd_norm),
    }


def published_spectrum(logits: Tensor, k: int, norm: str) -> Tensor:
    """−Σ of the k largest singular values of logits (N, V) / Σσ ("nuclear", exact) or ‖Z‖_F ("frobenius", sketched)."""
    least = min(logits.shape)
    if norm == "frobenius" and logits.shape[1] > SKETCHED_ABOVE and k < least:
        sigma = torch.svd_lowrank(logits, q=min(least, k + 5), niter=2)[1]
    else:
        sigma = torch.linalg.svdvals(logits)
    total = sigma.sum() if norm == "nuclear" else torch.linalg.vector_norm(logits)
    return -sigma[:k].sum() / total
