"""The generation objective from hidden states: the same value and gradients as the dense form, without storing the logits.

The rows pass through the frozen head W (V×d) in chunks. One softmax at temperature T serves both temperatures, because
softmax(z) is its T-th power, normalised. It is overwritten with the gradient with respect to the logits, and one product
with W turns that into the gradient with respect to the hidden states. A teacher that is not in memory takes d + 1 numbers
per row: u = Σ_v p_T(v)·w_v and c = Σ_v p_T(v)·log p_T(v). The singular values of Z = H·Wᵀ are those of H·Rᵀ where RᵀR = WᵀW.
docs/objective.md derives each of these.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunk import Plan, Teacher, TeacherStats, buffers_of, logits_of, one_chunk, part_of, softmax
from .dense import divisor
from .regularizers import entropy, svd_ratio, working
from .settings import REGULARIZERS, TERMS, Objective
from .sketch import Sketch
from .spectrum import full_precision, gram, leading_triplets

# Bytes of one chunk's logits in float32, by the type of device; the buffers take a few times this much memory in all. Each chunk
# reads the whole head again: at V = 128,256 on two cores, 8 MiB takes twice as long as 48 MiB. The value for CUDA is an estimate
# from memory bandwidth, not measured yet; scripts/gpu_check.sh times several sizes.
CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 256 << 20}
OBSERVED = ("entropy", "accuracy")  # of the student, which `observe` asks for


def rows_of_a_chunk(vocabulary: int, chunk_size: int | None = None, device: str = "cpu") -> int:
    """Rows per chunk: `chunk_size`, or as many as fit in the CHUNK_BYTES of a device type (for any other type, the CPU's)."""
    return chunk_size or max(CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (4 * vocabulary), 1)


def factor_of(head_weight: Tensor) -> Tensor:
    """Return R (min(V, d), d) with RᵀR = WᵀW, in float32 (float64 stays): H·Rᵀ has the singular values of H·Wᵀ.

    head_weight: (V, d). R is the Cholesky factor of WᵀW in float64; if W lacks full rank, R comes from the eigenvalues of
    WᵀW.
    """
    weight = head_weight.detach()
    kept = working(weight).dtype
    vocabulary, width = weight.shape
    if vocabulary <= width:
        return weight.to(kept)
    square = gram(weight.T)  # WᵀW
    lower, failed = torch.linalg.cholesky_ex(square)
    if failed:
        values, vectors = torch.linalg.eigh(square)
        lower = vectors * values.clamp(min=0).sqrt()
    return lower.T.to(kept).contiguous()


def chunked_objective(
    hidden: Tensor,
    teacher_hidden: Tensor | None,
    head_weight: Tensor,
    targets: Tensor,
    objective: Objective,
    lambdas: tuple[float, ...],
    *,
    head_factor: Tensor | None = None,
    teacher_stats: tuple[Tensor, Tensor] | Sketch | None = None,
    chunk_size: int | None = None,
    num_items: Tensor | float | None = None,
    spectrum_scale: float = 1.0,
    all_terms: bool = False,
    teacher_rows: Tensor | None = None,
    teacher_weight: float = 1.0,
    observe: bool = False,
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Loss and terms of rows that are already selected and shifted, from their hidden states; see dense.dense_objective.

    hidden, teacher_hidden: (N, d); head_weight: (V, d), frozen, without bias; targets: (N,). objective: its forms, T, K, k and
    norm are used. lambdas: the current weights, as from `Objective.weights`. teacher_stats: what a cache holds instead of
    teacher_hidden, (u, c) or a Sketch. head_factor: from `factor_of`; computed if None. chunk_size: rows per chunk; None = set by
    CHUNK_BYTES for the head's device. num_items: rows in the whole step (default N). teacher_rows (n,): the rows that the teacher's
    part (n, …) is of, if not all; in the consistency each weighs teacher_weight. No teacher's logits are computed for the others.
    observe: terms also has "entropy", that of the whole softmax at temperature 1 in nats, and "accuracy", the share of targets that are
    the most likely token; sums over the rows / num_items like the others.

    Returns (loss, terms). Terms carry no gradient and are unweighted; a term with weight 0 is None unless all_terms. loss = task +
    λ1·consistency + λ2·diversity + λ3·spectrum_scale·spectrum.

    Raises ValueError for a trainable head, for a form that needs the logits, for a consistency weight without a teacher, and for a
    teacher's part of another number of rows.
    """
    weights = dict(zip(TERMS[1:], lambdas, strict=True))
    teacher = teacher_hidden if teacher_stats is None else teacher_stats
    if teacher_stats is not None and not isinstance(teacher_stats, Sketch):
        teacher = TeacherStats(*teacher_stats)  # a plain pair will do
    _refuse(head_weight, objective, weights, teacher, len(targets if teacher_rows is None else teacher_rows))
    plan = _plan(objective, weights, teacher is not None, all_terms, observe)
    plan = plan._replace(chunk=rows_of_a_chunk(len(head_weight), chunk_size, head_weight.device.type))
    rest = (head_weight, targets, divisor(num_items, len(targets)), plan)
    if teacher_rows is None or not plan.has_consistency:
        loss, task, consistency, diversity, *observed = _TokenTerms.apply(hidden, teacher, *rest)
    else:
        loss, task, consistency, diversity, *observed = _partly_taught(
            hidden, teacher, *rest, teacher_rows, teacher_weight
        )
    terms: dict[str, Tensor | None] = dict.fromkeys(TERMS) | {"task": task}
    terms |= {"consistency": consistency} if plan.has_consistency else {}
    terms |= {"diversity": diversity} if plan.has_diversity else {}
    terms |= dict(zip(OBSERVED, observed, strict=True)) if observe else {}
    if needs_factor(lambdas, all_terms):
        factor = factor_of(head_weight) if head_factor is None else head_factor
        for name, value in _statistics(hidden, factor, objective, weights, all_terms).items():
            terms[name] = value.detach()
            if weights[name] > 0:
                loss = loss + weights[name] * spectrum_scale * value
    return loss, terms


def _plan(objective: Objective, weights: dict, has_teacher: bool, all_terms: bool, observe: bool) -> Plan:
    """The work on each chunk, whose size is left open."""
    return Plan(
        weights["consistency"],
        weights["diversity"],
        objective.temperature,
        objective.top_k,
        has_consistency=has_teacher and (weights["consistency"] > 0 or all_terms),
        has_diversity=weights["diversity"] > 0 or all_terms,
        observes=observe,
    )


def _refuse(head_weight: Tensor, objective: Objective, weights: dict, teacher: Teacher | None, taught: int) -> None:
    """Raise ValueError for arguments of `chunked_objective` that cannot work. taught: the rows that the teacher's part should have."""
    if needed := objective.logits_needed_by():
        raise ValueError(f"{' and '.join(needed)} cannot be computed from hidden states; use the dense form")
    if head_weight.requires_grad:
        raise ValueError("the chunked objective has no gradient for the head; freeze it or use the dense form")
    if weights["consistency"] > 0 and teacher is None:
        raise ValueError("lambda1 > 0 needs teacher_hidden or teacher_stats")
    rows = taught if teacher is None else len(teacher if isinstance(teacher, Tensor) else teacher[0])
    if rows != taught:
        raise ValueError(f"the teacher's part is of {rows} rows and should be of {taught}")


def needs_factor(lambdas: tuple[float, ...], all_terms: bool = False) -> bool:
    """Return True if a term in force is a statistic of the micro-batch, which `factor_of` the head serves."""
    return all_terms or any(weight > 0 and not each.per_row for each, weight in zip(REGULARIZERS, lambdas, strict=True))


@torch.no_grad()
def stats_of(
    hidden: Tensor, head_weight: Tensor, temperature: float, *, dtype: torch.dtype = torch.float32, chunk_size=None
) -> TeacherStats:
    """Teacher statistics from its hidden states (N, d): u (N, d) in `dtype` and c (N,) in float64.

    c = u·h/T − log Σ exp(z/T), with u as it is stored, so that the rounding error of u cancels in the consistency when the
    student is near the teacher. If u is bfloat16, −c is the entropy only up to that rounding.
    """
    weight = head_weight.detach().to(hidden.dtype)
    us, cs = [], []
    rows = max(min(len(hidden), rows_of_a_chunk(len(weight), chunk_size, weight.device.type)), 1)
    z, p = buffers_of(2, rows, weight)
    for part in hidden.split(rows):
        p, log_total = softmax(logits_of(part, weight, temperature, z), p)
        us.append(working(p.to(weight.dtype) @ weight).to(dtype))
        cs.append((us[-1].double() * part.double()).sum(-1) / temperature - log_total[:, 0])
    return TeacherStats(torch.cat(us), torch.cat(cs))


@torch.no_grad()
def mean_entropy(hidden: Tensor, head_weight: Tensor, temperature: float, chunk_size: int | None = None) -> Tensor:
    """Mean entropy of softmax(z/T) over the rows, in nats. hidden: (N, d); N at least 1."""
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for part in hidden.split(rows_of_a_chunk(len(head_weight), chunk_size, head_weight.device.type)):
        total += entropy(part @ head_weight.to(part.dtype).T, temperature).double().sum()
    return total / len(hidden)


def _spectrum(x: Tensor, objective: Objective) -> Tensor:
    """`svd_ratio`; for the Frobenius norm, from the leading triplets alone if they are cheap to find. x: (N, min(V, d))."""
    found = leading_triplets(x, objective.svd_k) if objective.svd_norm == "frobenius" else None
    if found is None:
        return svd_ratio(x, objective.svd_k, objective.svd_norm)
    left, right = found  # held fixed: σᵢ = uᵢᵀ·x·vᵢ has the gradient uᵢvᵢᵀ
    return -((left.T @ x) * right.T).sum() / torch.linalg.vector_norm(x, dtype=torch.float64).to(x.dtype)


# The statistics of a micro-batch: {name: function of (x, objective)}, differentiated by autograd. They may depend on Z = H·Wᵀ only
# through ZZᵀ, as its norm and singular values do: x = H·Rᵀ (N, min(V, d)) has the same.
STATISTICS: dict[str, Callable[[Tensor, Objective], Tensor]] = {"spectrum": _spectrum}


def _statistics(
    hidden: Tensor, factor: Tensor, objective: Objective, weights: dict, all_terms: bool
) -> dict[str, Tensor]:
    """The statistics that are wanted. factor: from `factor_of` the head."""
    with torch.autocast(hidden.device.type, enabled=False), full_precision():
        x = working(hidden) @ factor.to(working(hidden)).T
        wanted = [name for name in STATISTICS if weights[name] > 0 or all_terms]
        return {name: STATISTICS[name](x, objective) for name in wanted}


class _TokenTerms(torch.autograd.Function):
    """(loss, task, consistency, diversity, entropy, accuracy) of the token terms. The forward pass already computes the gradient for `hidden`."""

    @staticmethod
    def forward(ctx, hidden, teacher, head_weight, targets, items, plan):
        with torch.autocast(hidden.device.type, enabled=False):
            gradient, sums = _all_chunks(hidden.detach(), teacher, head_weight.detach(), targets, plan)
            scale = 1.0 / (items.double() if isinstance(items, Tensor) else items)
            ctx.save_for_backward(gradient.mul_(scale))
        task, consistency, diversity, *observed = (sums * scale).to(working(hidden).dtype)
        loss = task + plan.lambda1 * consistency + plan.lambda2 * diversity
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(task, consistency, diversity, *observed)
        return loss, task, consistency, diversity, *observed

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *unused):
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None, None, None, None, None


def _partly_taught(hidden, teacher, head_weight, targets, items, plan: Plan, rows: Tensor, weight: float) -> tuple:
    """`_TokenTerms` where the teacher's part is of `rows` (n,) alone, which weigh `weight`: first these rows, then the others."""
    is_taught = torch.zeros(len(targets), dtype=torch.uint8, device=targets.device).index_fill_(0, rows, 1)
    order = is_taught.argsort(stable=True)  # a mask would make the host wait for the device
    both = (
        (rows, teacher, plan._replace(lambda1=plan.lambda1 * weight)),
        (order[: len(targets) - len(rows)], None, plan._replace(lambda1=0.0, has_consistency=False)),
    )
    parts = [
        _TokenTerms.apply(hidden.index_select(0, part), source, head_weight, targets.index_select(0, part), items, form)
        for part, source, form in both
    ]
    loss, task, consistency, *rest = map(sum, zip(*parts, strict=True))
    return loss, task, weight * consistency, *rest


def _all_chunks(hidden, teacher, weight, targets, plan: Plan) -> tuple[Tensor, Tensor]:
    """The gradient (N, d) of the summed loss, and the sums (5,) of one_chunk in float64."""
    weight = weight.to(hidden.dtype)
    gradient = torch.empty(hidden.shape, dtype=working(hidden).dtype, device=hidden.device)
    sums = torch.zeros(5, dtype=torch.float64, device=hidden.device)
    rows = max(min(len(hidden), plan.chunk), 1)
    buffers = buffers_of(plan.buffers(teacher), rows, weight)
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        of_part = part_of(teacher, part, hidden.dtype) if plan.has_consistency else None
        gradient[part], more = one_chunk(hidden[part], of_part, weight, targets[part], plan, buffers)
        sums += more
    return gradient, sums
