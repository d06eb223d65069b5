"""Singular values for the spectrum term, differentiable and exact enough: all of them, or the leading ones in a few
products.

float32 matrices go through the Gram matrix of their smaller side in float64. Its eigenvalues σ² carry an error of 1e-16·σ₁²,
so every σ above float32's own rounding is right, and so is its gradient; a float32 SVD loses both (docs/objective.md has the
figures). Only the Frobenius form of the term can use the leading triplets alone; they come from a block Krylov space.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 16384  # columns held in float64 at once
OVERSAMPLING = 8  # extra vectors per Krylov block, beyond the k that are wanted
BLOCKS = (4, 6, 8)  # sizes of the Krylov space, in blocks, at which convergence is checked
TOLERANCE = 1e-4  # error of the leading subspace, and so of the gradient; the values' error is its square


searches = {"done": 0, "failed": 0}  # by `leading_triplets`, until somebody resets them


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 matrices on a GPU in full precision even if --tf32 is set, whose rounding exceeds TOLERANCE."""
    products = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(products, "fp32_precision") else ("allow_tf32", False)
    before = getattr(products, name)
    setattr(products, name, exact)
    try:
        yield
    finally:
        setattr(products, name, before)


def gram(x: Tensor) -> Tensor:
    """x·xᵀ in float64, (n, n). x: (n, m)."""
    total = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for part in x.split(PIECE, dim=1):
        part = part.double()
        total.addmm_(part, part.T)
    return total


def singular_values(x: Tensor) -> Tensor:
    """The min(n, m) singular values of x (n, m), descending, with gradients that are finite for every spectrum.

    Values that rounding alone can produce are set to 0 and carry no gradient: those below ε·√min(n, m)·σ₁ in float32, and
    below ε·max(n, m)·σ₁ in float64, where the SVD itself adds more error. Raises torch.linalg.LinAlgError if x is not
    finite.
    """
    if x.dtype != torch.float64:
        return _ByGram.apply(x)
    sigma = torch.linalg.svdvals(x)
    return torch.where(sigma > torch.finfo(x.dtype).eps * max(x.shape) * sigma[0].detach(), sigma, 0.0)


class _ByGram(torch.autograd.Function):
    """float32 singular values σᵢ = √λᵢ(x·xᵀ), with the gradient Σᵢ gᵢ·uᵢvᵢᵀ = U·diag(g/σ)·Uᵀ·x."""

    @staticmethod
    def forward(ctx, x):
        short = x if x.shape[0] <= x.shape[1] else x.T
        values, vectors = torch.linalg.eigh(gram(short))
        sigma = values.clamp(min=0).sqrt()  # ascending
        sigma = torch.where(sigma > torch.finfo(x.dtype).eps * sqrt(len(sigma)) * sigma[-1], sigma, 0.0)
        ctx.save_for_backward(x, sigma, vectors)
        return sigma.flip(0).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        x, sigma, vectors = ctx.saved_tensors
        weights = torch.where(sigma > 0, upstream.flip(0).double() / sigma, 0.0)
        middle = (vectors * weights) @ vectors.T
        short = x if x.shape[0] <= x.shape[1] else x.T
        pieces = [(middle @ part.double()).to(x.dtype) for part in short.split(PIECE, dim=1)]
        gradient = torch.cat(pieces, dim=1)
        return gradient if x.shape[0] <= x.shape[1] else gradient.T


@torch.compiler.disable
@torch.no_grad()
def leading_triplets(x: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """(U, V), (n, k) and (m, k), of the k largest singular values of x (n, m), or None if they cannot be computed cheaply.

    Uses a block Krylov space of x·xᵀ from a fixed random start. It has converged once the residual ‖X·V − U·diag(σ)‖_F is
    below TOLERANCE·√k times the gap from σ_k to the first value that the start has no vector for. Returns None for a small
    matrix, a flat or deficient spectrum, and values that are not finite; use `singular_values` then.
    """
    short = x if x.shape[0] <= x.shape[1] else x.T
    width = k + OVERSAMPLING
    if len(short) < 2 * BLOCKS[-1] * width or x.dtype == torch.float64 or not x.isfinite().all():
        return None
    generator = torch.Generator(x.device).manual_seed(0)
    start = torch.randn(short.shape[1], width, generator=generator, device=x.device, dtype=x.dtype)
    searches["done"] += 1
    block = torch.linalg.qr(short @ start)[0]
    basis, images = block, short.T @ block
    for blocks in range(2, BLOCKS[-1] + 1):
        block = short @ images[:, -width:]
        for _ in range(2):  # twice is enough for orthogonality to rounding
            block = torch.linalg.qr(block - basis @ (basis.T @ block))[0]
        basis, images = torch.cat([basis, block], 1), torch.cat([images, short.T @ block], 1)
        if blocks not in BLOCKS:
            continue
        values, vectors = torch.linalg.eigh(gram(images.T))
        sigma, turn = values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)[:, :k]
        if sigma[k - 1] == 0:
            break
        short_side = basis @ turn.to(x.dtype)
        long_side = (images.double() @ (turn / sigma[:k])).to(x.dtype)
        residual = torch.linalg.vector_norm(short @ long_side - short_side * sigma[:k].to(x.dtype))
        if residual < TOLERANCE * sqrt(k) * (sigma[k - 1] - sigma[width]):
            return (short_side, long_side) if short is x else (long_side, short_side)
    searches["failed"] += 1
    return None
