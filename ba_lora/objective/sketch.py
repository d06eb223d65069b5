"""The teacher as a sketch: M tokens of each row in place of the whole distribution, for consistency without bias.

A row keeps M tokens and their probabilities p at temperature T. A token is kept with the probability π = min(1, (p + SPREAD/V)/τ),
where the row's threshold τ makes the sum of π equal M: the likely tokens always, the others by chance. From them and the student's
q = softmax(z/T), of which every entry is known, the gradient of T²·KL(p ‖ q) for z is estimated by

    T·[ Σ_kept (f_v − p_v)/π_v·(e_v − q)  +  Σ_v (q_v − f_v)·(e_v − q) ],      f = min(q, τ),

whose mean over the draws is T·(q − p). It is 0 whatever was drawn if q = p, and the gradient of a value that is never negative.
docs/objective.md derives both and compares the estimator with others.

A kept token is one 32-bit word: its number in as many bits as the vocabulary needs, its probability in the others.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

OCTAVES = 32  # stored probabilities are 0 or at least 2^−OCTAVES
BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 32 << 20}  # of the rows that are compared with the student at once
SPREAD = 0.03  # share of the draws, about, that go to all tokens alike, for those that the student comes to prefer to the teacher


class Words(NamedTuple):
    """Sketches as they are stored: words (N, M) int32, threshold (N,) and entropy (N,) in float32. `Sketch` reads them."""

    words: Tensor
    threshold: Tensor
    entropy: Tensor

    def read(self, vocabulary: int) -> "Sketch":
        """The sketches of rows over `vocabulary` tokens."""
        bits = code_bits(vocabulary)
        words = self.words.long() & 0xFFFFFFFF  # the sign bit is data
        p = decode(words & ((1 << bits) - 1), bits)
        weight = 1 / inclusion(p, self.threshold.double()[:, None], vocabulary)
        return Sketch(words >> bits, p.float(), weight.float(), self.threshold, self.entropy)


class Sketch(NamedTuple):
    """The kept tokens of N rows: ids, p and weight (1/π) (N, M); threshold and the teacher's entropy in nats (N,)."""

    ids: Tensor
    p: Tensor
    weight: Tensor
    threshold: Tensor
    entropy: Tensor


class Against(NamedTuple):
    """A sketch against the student. kl: (n,) float64. Its gradient for z/T: `kept` (n, M) at the ids, minus `drift` (n, 1) times q, plus
    q's excess over the threshold."""

    kl: Tensor
    kept: Tensor
    drift: Tensor


def pack(ids: Tensor, codes: Tensor, vocabulary: int) -> Tensor:
    """Words (N, M) int32 of token numbers and probability codes (N, M) int64."""
    words = ids << code_bits(vocabulary) | codes
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def inclusion(p: Tensor, threshold: Tensor, vocabulary: int) -> Tensor:
    """π of tokens of the stored probability p; positive for p = 0 too."""
    return ((p + SPREAD / vocabulary) / threshold).clamp(max=1)


def encode(p: Tensor, uniform: Tensor, bits: int) -> Tensor:
    """Codes (N, V) of probabilities, rounded up or down such that the mean of `decode` over the uniform (N, 1) is p.

    Code 0 is 0; the others divide [2^−OCTAVES, 1] into equal ratios.
    """
    steps = (1 << bits) - 2
    lower = (
        ((p.double().clamp(min=2.0 ** -(OCTAVES + 1)).log2() / OCTAVES + 1) * steps + 1).floor().clamp(0, steps).long()
    )
    low, high = decode(lower, bits), decode(lower + 1, bits)
    return lower + (uniform * (high - low) < p.double() - low)


def decode(codes: Tensor, bits: int) -> Tensor:
    """Probabilities in float64."""
    p = torch.exp2(((codes - 1).double() / ((1 << bits) - 2) - 1) * OCTAVES)
    return torch.where(codes == 0, 0.0, p)


def against(sketch: Sketch, z: Tensor, q: Tensor, log_total: Tensor) -> Against:
    """Compare sketches with the student. z: its logits/T (n, V); q: softmax(z); log_total: log Σ exp z (n, 1) float64."""
    p, threshold = sketch.p.double(), sketch.threshold.double()[:, None]
    log_q = z.gather(1, sketch.ids).double() - log_total
    bounded = log_q.exp().minimum(threshold)  # f
    weight = sketch.weight.double()
    kl = (weight * _kept_kl(p, log_q, threshold)).sum(-1)
    kept = weight * (bounded - p)
    least, log_least = sketch.threshold.to(q)[:, None], (threshold.log() + log_total).to(q)
    total, above = torch.empty_like(least), torch.empty_like(least)  # Σ (q − τ) and Σ log(q/τ), where q is above τ
    for part, excess in _blocks(q):
        torch.sum(torch.sub(z[part], log_least[part], out=excess).clamp_(min=0), -1, keepdim=True, out=above[part])
        torch.sum(torch.sub(q[part], least[part], out=excess).clamp_(min=0), -1, keepdim=True, out=total[part])
    kl += (total - threshold * above)[:, 0]
    return Against(kl, kept.to(q), (kept.sum(-1, keepdim=True) + total).to(q))


def add_slope(g: Tensor, sketch: Sketch, found: Against, q: Tensor, scale: Tensor) -> Tensor:
    """Add scale (n, 1) times the gradient of `found.kl` for z/T to g (n, V) in place, and return g, which may be q."""
    least, own = sketch.threshold.to(q)[:, None], -scale * found.drift
    for part, excess in _blocks(q):
        torch.sub(q[part], least[part], out=excess).clamp_(min=0)
        g[part].addcmul_(q[part], own[part]).addcmul_(excess, scale[part])
    return g.scatter_add_(1, sketch.ids, scale * found.kept)


def _blocks(q: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of q (n, V), each with a buffer of its size: passes over a block that the cache holds cost little."""
    rows = max(BLOCK_BYTES.get(q.device.type, BLOCK_BYTES["cpu"]) // (q.element_size() * q.shape[1]), 1)
    buffer = torch.empty_like(q[:rows])
    for start in range(0, len(q), rows):
        part = slice(start, min(start + rows, len(q)))
        yield part, buffer[: part.stop - start]


def sketched_kl(logits: Tensor, sketch: Sketch, temperature: float) -> Tensor:
    """T² times the mean over the rows of the KL that the sketches estimate, by autograd. logits: (N, V), the student's."""
    z = (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits) / temperature
    if not len(z):
        return z.sum() * 0.0
    log_q = torch.log_softmax(z, dim=-1)
    threshold = sketch.threshold.to(z)[:, None]
    kept = sketch.weight.to(z) * _kept_kl(sketch.p.to(z), log_q.gather(1, sketch.ids), threshold)
    above = (log_q - threshold.log()).clamp(min=0)  # log(q/τ) where q is above τ
    rest = threshold * (torch.expm1(above) - above)
    return temperature**2 * (kept.sum(-1) + rest.sum(-1)).mean()


def _kept_kl(p: Tensor, log_q: Tensor, threshold: Tensor) -> Tensor:
    """What a kept token adds to KL before it is weighted: ∫ (f − p)/q dq from p to q, with f = min(q, τ); p log(p/q) − p + q
    while both lie below τ."""
    above = (log_q - threshold.log()).clamp(min=0)
    bounded = log_q.exp().minimum(threshold)
    return torch.xlogy(p, p) - p * log_q - p + bounded + threshold * above


def code_bits(vocabulary: int) -> int:
    """The bits of a word that the number of a token leaves for its probability."""
    return 32 - max((vocabulary - 1).bit_length(), 1)
