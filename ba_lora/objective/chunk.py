"""One chunk of rows through the frozen head: the sums of its token terms and their gradient for the hidden states.

All work is done in a few buffers of the size of the chunk's logits, which chunked.py reuses from chunk to chunk. docs/objective.md
derives the steps.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .regularizers import working
from .sketch import Against, Sketch, add_slope, against


class TeacherStats(NamedTuple):
    """The teacher's contribution to each row: u (N, d) and c (N,)."""

    u: Tensor
    c: Tensor

    @property
    def entropy(self) -> Tensor:
        """(N,) in nats; of a bfloat16 u only up to its rounding."""
        return -self.c


Teacher = Tensor | TeacherStats | Sketch  # its part of some rows: hidden states (N, d), or what a cache holds


class Plan(NamedTuple):
    """The work on each chunk. lambda1, lambda2: the current weights of consistency and diversity. observes: also the sums of the
    entropies at temperature 1 and of the targets that are the most likely token."""

    lambda1: float
    lambda2: float
    temperature: float
    top_k: int | None
    has_consistency: bool
    has_diversity: bool
    chunk: int = 1
    observes: bool = False

    def buffers(self, teacher: Teacher | None) -> int:
        """Number of buffers of the size of a chunk's logits."""
        is_softened = self.has_consistency and self.temperature != 1
        needs_own = self.has_consistency and isinstance(teacher, Tensor)
        return 2 + needs_own + (is_softened and self.keeps_logits)

    @property
    def keeps_logits(self) -> bool:
        """Return True if the logits are needed after the softmax."""
        return self.observes or (self.has_diversity and self.top_k is None)


def part_of(teacher: Teacher, part: slice, dtype: torch.dtype) -> Teacher:
    """These rows of the teacher, in the precision that `one_chunk` takes."""
    if isinstance(teacher, Sketch):
        return Sketch(*(each[part] for each in teacher))
    if isinstance(teacher, TeacherStats):
        return TeacherStats(working(teacher.u[part]), teacher.c[part].double())
    return teacher[part].to(dtype)


def buffers_of(count: int, rows: int, weight: Tensor) -> list[Tensor]:
    """`count` buffers (rows, V) for a chunk's logits, in working precision.

    They are allocated once and reused for every chunk: fresh memory from the system costs more than the arithmetic done in
    it.
    """
    return [torch.empty(rows, len(weight), dtype=working(weight[:0]).dtype, device=weight.device) for _ in range(count)]


def logits_of(hidden: Tensor, weight: Tensor, temperature: float, out: Tensor) -> Tensor:
    """Write z/T (n, V), in working precision, to the first n rows of `out`, and return them."""
    exact = math.frexp(temperature)[0] == 0.5  # a power of two: dividing the hidden states is exact
    z, hidden = out[: len(hidden)], hidden / temperature if exact else hidden
    if weight.dtype == z.dtype:
        torch.mm(hidden, weight.T, out=z)
    else:
        z.copy_(hidden @ weight.T)
    return z if exact else z.div_(temperature)


def _largest(z: Tensor, k: int, width: int = 128) -> tuple[Tensor, Tensor]:
    """Same as z.topk(k), but several times faster for long rows: the k largest lie in the k blocks with the largest maxima."""
    rows, length = z.shape
    blocks = length // width
    if blocks < 4 * k:
        return z.topk(k, dim=-1)
    chosen = z[:, : blocks * width].view(rows, blocks, width).amax(-1).topk(k, dim=-1).indices  # (n, K)
    places = (chosen[..., None] * width + torch.arange(width, device=z.device)).flatten(1)
    rest = torch.arange(blocks * width, length, device=z.device).expand(rows, -1)
    places = torch.cat([places, rest], dim=1)
    values, among = z.gather(1, places).topk(k, dim=-1)
    return values, places.gather(1, among)


def softmax(z: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return (p, log Σ exp z in float64 (n, 1)) of z (n, V). z is unchanged; p is written to the first n rows of `out`."""
    p = torch.softmax(z, dim=-1, out=out[: len(z)])
    # the largest p is 1 / Σ exp(z − max z)
    return p, z.amax(-1, keepdim=True).double() - p.amax(-1, keepdim=True).double().log()


def one_chunk(hidden, teacher, weight, targets, plan: Plan, buffers: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One chunk's gradient (n, d) of the summed loss, and its sums (5,): task, consistency, diversity and what `_observed` returns.

    teacher: its hidden states (n, d), its statistics, a sketch, or None. buffers: `plan.buffers` of them; comments say what
    each one holds. All logits here are divided by T.
    """
    temperature, soft = (plan.temperature, plan.lambda1 * plan.temperature) if plan.has_consistency else (1.0, 0.0)
    whole = plan.has_diversity and plan.top_k is None
    sums = torch.zeros(5, dtype=torch.float64, device=hidden.device)
    first, second, *more = buffers

    z = logits_of(hidden, weight, temperature, first)  # (n, V), in the first buffer
    z_target = z.gather(1, targets[:, None])
    top, places = _largest(z, plan.top_k) if plan.has_diversity and not whole else (None, None)
    p_teacher = None
    if isinstance(teacher, Tensor):
        z_teacher = logits_of(teacher, weight, temperature, second)  # in the second buffer
        p_teacher, log_total_teacher = softmax(z_teacher, more.pop())  # in the third buffer, to the end
        moved = torch.linalg.vecdot(p_teacher, z_teacher.sub_(z))  # exactly 0 for equal hidden states

    p, log_total = softmax(z, second)  # in the second buffer
    sketched = against(teacher, z, p, log_total) if isinstance(teacher, Sketch) else None
    # p at temperature 1 is `ones` / partition: in the second buffer if T = 1, else in place of z unless z is needed again
    ones = p if temperature == 1 else torch.pow(p, temperature, out=more.pop()[: len(z)] if plan.keeps_logits else z)
    partition = ones.sum(-1, keepdim=True)
    log_partition = temperature * log_total + partition.double().log()
    sums[0] = (log_partition - temperature * z_target).sum()
    if plan.observes:
        sums[3:] = _observed(z, ones, partition, log_partition, targets, temperature)
    if p_teacher is not None:
        sums[1] = temperature**2 * (moved[:, None].double() + (log_total - log_total_teacher)).sum()
    elif sketched is not None:
        sums[1] = temperature**2 * sketched.kl.sum()
    elif plan.has_consistency:
        cross = (teacher.u.double() * hidden.double()).sum(-1, keepdim=True) / temperature
        sums[1] = temperature**2 * (teacher.c[:, None] - cross + log_total).sum()

    slope = None
    if whole:
        log_p = z.mul_(temperature).sub_(log_partition)  # in the first buffer
        negative = torch.linalg.vecdot(ones, log_p)[:, None] / partition  # −H
        sums[2] = negative.double().sum()
        slope = log_p.sub_(negative).mul_(ones) if plan.lambda2 else None
    elif plan.has_diversity:
        log_top = torch.log_softmax(temperature * top, dim=-1)
        negative = (log_top.exp() * log_top).sum(-1, keepdim=True)  # −H over the K largest
        sums[2] = negative.double().sum()

    # The gradient with respect to the logits, times the partition; the product with the head is divided by it again.
    g = _with_consistency(ones, p, soft * partition, p_teacher, teacher, sketched) if soft else ones
    if slope is not None:
        g.add_(slope, alpha=plan.lambda2)
    g.scatter_add_(1, targets[:, None], -partition)
    if top is not None and plan.lambda2:
        g.scatter_add_(1, places, plan.lambda2 * partition * log_top.exp() * (log_top - negative))
    gradient = working(g.to(weight.dtype) @ weight).div_(partition)
    if soft and isinstance(teacher, TeacherStats):
        gradient.sub_(teacher.u, alpha=soft)
    return gradient, sums


def _with_consistency(ones, p, pull: Tensor, p_teacher: Tensor | None, teacher, sketched: Against | None) -> Tensor:
    """`ones` (n, V) plus `pull` (n, 1) times the slope of consistency, in place; without that of (u, c), which comes in later."""
    if sketched is not None:
        return add_slope(ones, teacher, sketched, p, pull)
    g = ones.mul_(1 + pull) if p is ones else ones.addcmul_(p, pull)
    return g if p_teacher is None else g.addcmul_(p_teacher, -pull)


def _observed(z, ones, partition, log_partition, targets, temperature: float) -> Tensor:
    """(2,): the sum of the rows' entropies at temperature 1 in nats, and the number of targets that are the most likely token.

    z: the logits divided by T (n, V). ones, partition: the probabilities times the partition, and the partition.
    """
    entropies = log_partition - temperature * torch.linalg.vecdot(ones, z)[:, None].double() / partition
    return torch.stack([entropies.sum(), (z.argmax(-1) == targets).sum().double()])
