"""Draw the sketch of a teacher's rows (sketch.py) from its hidden states."""

import torch
from torch import Tensor

from .chunked import rows_of_a_chunk
from .regularizers import entropy, working
from .sketch import SPREAD, Words, code_bits, decode, encode, inclusion, pack


@torch.no_grad()
def sketch_of(
    hidden: Tensor,
    head_weight: Tensor,
    temperature: float,
    uniforms: Tensor,
    entries: int,
    *,
    chunk_size: int | None = None,
) -> Words:
    """The sketches of rows with these hidden states (N, d), of min(entries, V) tokens each.

    uniforms: (N, 2) in [0, 1): the start of each row's systematic draw, and the rounding of its probabilities.
    """
    weight = head_weight.detach().to(hidden.dtype)
    rows = rows_of_a_chunk(len(weight), chunk_size, weight.device.type)
    uniforms = uniforms.to(hidden.device).double()
    parts = []
    for part, uniform in zip(hidden.split(rows), uniforms.split(rows), strict=True):
        z = working(part @ weight.T)
        p = torch.softmax(z / temperature, dim=-1)
        parts.append(Words(*draw(p, uniform, entries), entropy(z, temperature).float()))
    return Words(*(torch.cat(each) for each in zip(*parts, strict=True)))


def draw(p: Tensor, uniforms: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """(words (N, M) int32, thresholds (N,) float32) of probabilities p (N, V); M is min(entries, V). uniforms: (N, 2) float64.

    The drawn probability is the one that is stored, so that its rounding adds no bias. Systematic: the vocabulary is laid out on a
    line of length M, a token over a length of π, and the M points u, u + 1, … are read off.
    """
    vocabulary = p.shape[1]
    bits, count = code_bits(vocabulary), min(entries, vocabulary)
    codes = encode(p, uniforms[:, 1:], bits)
    stored = decode(codes, bits)
    threshold = thresholds(stored, count).float()
    line = inclusion(stored, threshold.double()[:, None], vocabulary).cumsum(-1)
    line *= count / line[:, -1:]  # the threshold was rounded
    points = uniforms[:, :1] + torch.arange(count, device=p.device)
    ids = torch.searchsorted(line, points, right=True).clamp_(max=vocabulary - 1)
    return pack(ids, codes.gather(1, ids), vocabulary), threshold


def thresholds(p: Tensor, count: int) -> Tensor:
    """τ (N,) in float64 for which the `inclusion` of p (N, V) sums to `count` in every row."""
    largest = (p + SPREAD / p.shape[1]).topk(count, dim=-1).values
    total = p.sum(-1, keepdim=True) + SPREAD
    before = largest.cumsum(-1) - largest  # the sum of those that are larger
    tried = (total - before) / (count - torch.arange(count, device=p.device))  # τ if exactly k tokens are certain
    certain = ((largest >= tried).cumprod(-1).sum(-1)).clamp(max=count - 1)
    return tried.gather(1, certain[:, None])[:, 0]
