"""Singular values through float64 Gram matrices, leading ones from a Krylov space, and those of logits from the head's
factor.

Each is compared with torch's SVD in float64.
"""

from types import SimpleNamespace

import pytest
import torch

from ba_lora.objective.chunked import chunked_objective, factor_of
from ba_lora.objective.regularizers import svd_ratio
from ba_lora.objective.settings import Objective
from ba_lora.objective.spectrum import full_precision, gram, leading_triplets, singular_values

EPS = torch.finfo(torch.float32).eps


def with_values(sigma, rows, columns, seed=0):
    """A float64 matrix with the singular values sigma."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(side, len(sigma), dtype=torch.float64, generator=generator))[0]
        for side in (rows, columns)
    )
    return (left * sigma) @ right.T


def svd_in_float64(x, k, norm):
    """Value and gradient of the term, by autograd through torch's SVD."""
    x = x.double().requires_grad_()
    sigma = torch.linalg.svdvals(x)
    value = -sigma[:k].sum() / (sigma.sum() if norm == "nuclear" else x.norm())
    value.backward()
    return value.item(), x.grad


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


@pytest.mark.parametrize("norm", ["nuclear", "frobenius"])
@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (64, 64)], ids=str)
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_value_and_gradient_equal_an_svd_in_float64_down_to_small_values(shape, condition, norm):
    sigma = condition ** -torch.linspace(0, 1, min(shape), dtype=torch.float64)
    x = with_values(sigma, *shape).float()
    value, gradient = svd_in_float64(x, 5, norm)
    ours = x.clone().requires_grad_()
    result = svd_ratio(ours, 5, norm)
    result.backward()
    assert result.item() == pytest.approx(value, rel=1e-6)
    assert relative(ours.grad, gradient) < 1e-5


@pytest.mark.parametrize("shape", [(40, 5000), (300, 300), (500, 60)], ids=str)
def test_float32_noise_counts_as_zero_and_what_lies_above_it_does_not(shape):
    generator = torch.Generator().manual_seed(0)
    rank = min(shape) // 2
    noisy = torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)
    assert (singular_values(noisy) > 0).sum() == rank
    floor = EPS * min(shape) ** 0.5
    for smallest, count in ((0.1 * floor, rank), (10 * floor, rank + 1)):
        sigma = torch.cat([torch.ones(rank), torch.tensor([smallest])]).double()
        exact = torch.zeros(shape)  # diagonal, so that float32 adds no noise of its own
        exact[range(rank + 1), range(rank + 1)] = sigma.float()
        assert (singular_values(exact) > 0).sum() == count


def test_small_but_real_values_of_wide_logits_count():
    """0.5% of the largest is real, also at V = 50,000."""
    x = torch.zeros(3, 50_000)
    x[0, 0], x[1, 1], x[2, 2] = 1.0, 5e-3, 1e-5
    assert singular_values(x).tolist() == pytest.approx([1.0, 5e-3, 1e-5], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficient_rows_have_a_gradient_within_the_rank(dtype):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(60, 5, generator=generator), torch.randn(5, 4000, generator=generator)
    x = (left.to(dtype) @ right.to(dtype)).requires_grad_()
    svd_ratio(x, 2).backward()
    left = torch.linalg.svd(x.detach().double(), full_matrices=False)[0][:, :5]
    assert relative(left @ (left.T @ x.grad.double()), x.grad.double()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["nuclear", "frobenius"])
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(4, 6),
        torch.eye(6),
        torch.ones(5, 3),
        torch.diag(torch.tensor([1.0, 1e-30, 0.0, 0.0])),
        torch.full((3, 4), 1e-25),
        torch.full((3, 4), 1e25),
        torch.ones(1, 7),
        torch.zeros(0, 7),
        torch.arange(14.0).view(2, 7),
        torch.randn(10, 400, generator=torch.Generator().manual_seed(0)).repeat(40, 1),
    ],
    ids=["zero", "repeated", "rank one", "tiny", "all tiny", "all large", "one row", "none", "fewer than k", "copies"],
)
def test_value_and_gradient_are_finite_for_every_spectrum(x, norm, dtype):
    x = x.to(dtype, copy=True).requires_grad_()
    value = svd_ratio(x, 3, norm)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(x.grad).all()
    top = x.detach().abs().max().item() if x.numel() else 0.0
    assert x.grad.numel() == 0 or x.grad.norm().item() * max(top, 1e-30) < 10  # on the order of 1/σ₁


def test_gram_is_the_float64_product_in_pieces():
    x = torch.randn(3, 40_000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(gram(x), x.double() @ x.double().T, rtol=1e-12)


LARGE = {  # spectra of 320 values: those that a Krylov space finds, and those that it does not
    "1/i": (lambda i: 1 / i, True),
    "1/sqrt(i)": (lambda i: i**-0.5, True),
    "one above the rest": (lambda i: torch.where(i == 1, 10.0, i**-0.5), True),
    "one so far above that float32 cannot tell": (lambda i: torch.where(i == 1, 300.0, i**-0.5), False),
    "repeated leading values": (lambda i: torch.where(i <= 12, 1.0, 1 / i), True),
    "flat": (lambda i: 1 - 0.5 * i / 320, False),
    "rank 5": (lambda i: (i <= 5).double(), False),
}


@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("spectrum", LARGE)
def test_leading_triplets_are_right_or_not_given(spectrum, tall):
    values, found = LARGE[spectrum]
    x = with_values(values(torch.arange(1, 321, dtype=torch.float64)), 320, 400).float()
    x = x.T.contiguous() if tall else x
    triplets = leading_triplets(x, 10)
    assert (triplets is not None) == found
    if not found:
        return
    left, right = triplets
    assert left.shape == (len(x), 10) and right.shape == (x.shape[1], 10)
    exact = torch.linalg.svd(x.double(), full_matrices=False)
    assert relative((left.T @ x @ right).diagonal(), exact.S[:10]) < 1e-6
    if spectrum != "repeated leading values":  # here the leading ten are not determined
        assert relative(left @ right.T, exact.U[:, :10] @ exact.Vh[:10]) < 1e-4


def test_leading_triplets_leave_the_random_numbers_alone_and_repeat():
    x = with_values(1 / torch.arange(1, 321, dtype=torch.float64), 320, 320).float()
    before = torch.get_rng_state()
    first, second = leading_triplets(x, 10), leading_triplets(x, 10)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_small_or_broken_matrices_have_no_leading_triplets():
    assert leading_triplets(torch.randn(20, 300), 10) is None
    assert leading_triplets(torch.full((320, 320), torch.nan), 10) is None
    assert leading_triplets(torch.zeros(320, 320), 10) is None


@pytest.mark.parametrize("norm", ["nuclear", "frobenius"])
def test_a_value_that_is_not_finite_gives_a_loss_that_is_not(norm):
    assert svd_ratio(torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), 1, norm).isnan()


def from_hidden(hidden, weight, k, norm):
    """Value and gradient of the term alone, as in training: the task's share is divided out."""
    hidden = hidden.clone().requires_grad_()
    targets = torch.zeros(len(hidden), dtype=torch.long)
    form = Objective(svd_k=k, svd_norm=norm)
    loss, terms = chunked_objective(hidden, None, weight, targets, form, (0.0, 0.0, 1.0), num_items=10**12)
    loss.backward()
    return terms["spectrum"].item(), hidden.grad


def test_a_badly_conditioned_head_keeps_its_singular_values():
    weight = with_values(torch.logspace(0, -4, 32, dtype=torch.float64), 2003, 32).float()
    hidden = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    dense = torch.linalg.svdvals(hidden.double() @ weight.double().T)
    ours = torch.linalg.svdvals(hidden.double() @ factor_of(weight).double().T)
    assert ((ours - dense).abs() <= 1e-6 * dense).all()  # each one up to float32's rounding of R


@pytest.mark.parametrize("norm", ["nuclear", "frobenius"])
@pytest.mark.parametrize("rows, width", [(40, 64), (300, 320)], ids=["all values", "Krylov with frobenius"])
def test_term_equals_svdvals_of_the_logits_where_they_fall_like_1_over_i(rows, width, norm):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3001, width, generator=generator, dtype=torch.float64)
    factor = torch.linalg.cholesky(weight.T @ weight)
    turned = with_values(1 / torch.arange(1, rows + 1, dtype=torch.float64), rows, width)  # H·Rᵀ, so σᵢ = 1/i for H·Wᵀ
    hidden, weight = 30 * torch.linalg.solve(factor, turned, left=False).float(), weight.float()
    assert (leading_triplets(hidden @ factor_of(weight).T, 10) is not None) == (rows == 300)

    value, gradient = svd_in_float64(hidden.double() @ weight.double().T, 10, norm)
    ours, ours_gradient = from_hidden(hidden, weight, 10, norm)
    assert ours == pytest.approx(value, rel=1e-6)
    assert relative(ours_gradient, gradient @ weight.double()) < 1e-4


@pytest.mark.parametrize("norm", ["nuclear", "frobenius"])
def test_more_rows_than_dimensions_leave_the_dense_form_and_the_factors_equal(norm):
    """The logits have rank d < N: noise taken for real values would spoil the dense form's gradient."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(64, 8, generator=generator), torch.randn(999, 8, generator=generator)
    logits = (hidden @ weight.T).requires_grad_()
    value = svd_ratio(logits, 3, norm)
    value.backward()
    ours, gradient = from_hidden(hidden, weight, 3, norm)
    assert ours == pytest.approx(value.item(), rel=1e-6)
    assert relative(gradient, (logits.grad @ weight).double()) < 1e-4
    inside = logits.grad @ torch.linalg.pinv(weight.T) @ weight.T
    assert relative(inside, logits.grad.double()) < 1e-3


@pytest.mark.parametrize("name", ["fp32_precision", "allow_tf32"])
def test_products_are_in_full_precision_inside_and_as_set_outside(monkeypatch, name):
    setting = SimpleNamespace(**{name: "tf32" if name == "fp32_precision" else True})
    monkeypatch.setattr("torch.backends.cuda.matmul", setting)
    with pytest.raises(KeyError), full_precision():
        assert getattr(setting, name) in ("ieee", False)
        raise KeyError
    assert getattr(setting, name) in ("tf32", True)
