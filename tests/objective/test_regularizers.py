"""Each regularizer, compared with its equation in float64 numpy, with finite differences, and at its edges."""

import numpy as np
import pytest
import torch

from ba_lora.objective.regularizers import (
    consistency_kl,
    consistency_mse,
    diversity_covariance,
    diversity_entropy,
    svd_ratio,
)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl_by_hand(student, teacher, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * np.mean([sum(p[n] * (np.log(p[n]) - np.log(q[n]))) for n in range(len(p))])


def mse_by_hand(student, teacher):
    unit = lambda z: z / np.sqrt((z**2).sum(1))[:, None]  # noqa: E731
    return ((unit(student) - unit(teacher)) ** 2).sum() / student.size


def entropy_by_hand(z, top_k=None):
    total = 0.0
    for row in z:
        p = softmax(np.sort(row)[::-1][: top_k or len(row)])
        total += (p * np.log(p)).sum()
    return total / len(z)


def covariance_by_hand(z):
    centred = z - z.mean(0)
    c = centred.T @ centred / (len(z) - 1)
    width = z.shape[1]
    return sum(c[i, j] ** 2 for i in range(width) for j in range(width) if i != j) / width


def svd_by_hand(z, k, norm):
    s = np.linalg.svd(z, compute_uv=False)
    return -s[:k].sum() / (s.sum() if norm == "nuclear" else np.sqrt((z**2).sum()))


CASES = {
    "kl T=1": (lambda s, t: consistency_kl(s, t), lambda s, t: kl_by_hand(s, t, 1.0)),
    "kl T=2": (lambda s, t: consistency_kl(s, t, 2.0), lambda s, t: kl_by_hand(s, t, 2.0)),
    "mse": (consistency_mse, mse_by_hand),
    "entropy": (lambda s, t: diversity_entropy(s), lambda s, t: entropy_by_hand(s)),
    "entropy top 4": (lambda s, t: diversity_entropy(s, 4), lambda s, t: entropy_by_hand(s, 4)),
    "covariance": (lambda s, t: diversity_covariance(s), lambda s, t: covariance_by_hand(s)),
    "nuclear k=3": (lambda s, t: svd_ratio(s, 3), lambda s, t: svd_by_hand(s, 3, "nuclear")),
    "frobenius k=3": (
        lambda s, t: svd_ratio(s, 3, "frobenius"),
        lambda s, t: svd_by_hand(s, 3, "frobenius"),
    ),
}


def draw(rows=7, width=11, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(rows, width, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_equals_the_equation_in_numpy(name, dtype, tolerance):
    student, teacher = draw(dtype=dtype)
    ours, by_hand = CASES[name]
    result = ours(student, teacher)
    assert result.dtype == dtype
    assert result.item() == pytest.approx(by_hand(student.double().numpy(), teacher.double().numpy()), rel=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_finite_differences(name):
    student, teacher = draw()
    assert torch.autograd.gradcheck(lambda s: CASES[name][0](s, teacher), student.requires_grad_())


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_reduced_in_float32(name):
    student, teacher = draw(dtype=torch.bfloat16)
    result = CASES[name][0](student, teacher)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(CASES[name][0](student.float(), teacher.float()).item(), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_no_rows_give_a_connected_zero(name):
    student = torch.zeros(0, 11, requires_grad=True)
    result = CASES[name][0](student, torch.zeros(0, 11))
    result.backward()
    assert result.item() == 0.0 and student.grad.shape == (0, 11)


@pytest.mark.parametrize("name", ["kl T=1", "kl T=2", "mse"])
def test_consistency_is_zero_at_equality_and_positive_elsewhere(name):
    student, teacher = draw(dtype=torch.float32)
    assert CASES[name][0](teacher, teacher).item() == 0.0
    assert CASES[name][0](student, teacher).item() > 0.0


def test_kl_survives_probabilities_that_underflow():
    student = torch.tensor([[0.0, 2000.0, -2000.0]], requires_grad=True)
    loss = consistency_kl(student, torch.tensor([[0.0, -2000.0, 2000.0]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_kl_takes_the_teacher_first():
    student, teacher = draw()
    assert consistency_kl(student, teacher).item() != pytest.approx(consistency_kl(teacher, student).item(), rel=1e-3)


def test_entropy_lies_between_that_of_a_point_and_of_the_uniform():
    assert diversity_entropy(torch.zeros(2, 8)).item() == pytest.approx(-np.log(8), rel=1e-6)
    assert diversity_entropy(torch.zeros(2, 8), top_k=4).item() == pytest.approx(-np.log(4), rel=1e-6)
    assert diversity_entropy(1e4 * torch.eye(8)).item() == pytest.approx(0.0, abs=1e-6)


def test_nuclear_ratio_is_constant_once_k_reaches_the_rank():
    logits = draw(rows=16, width=3)[0].requires_grad_()
    loss = svd_ratio(logits, 5)
    loss.backward()
    assert loss.item() == pytest.approx(-1.0, abs=1e-12)
    assert logits.grad.abs().max() < 1e-12


def test_frobenius_ratio_is_largest_for_a_flat_spectrum_of_rank_k():
    flat = torch.diag(torch.tensor([1.0] * 10 + [0.0] * 10))
    single = torch.diag(torch.tensor([1.0] + [0.0] * 19))
    assert svd_ratio(flat, 10, "frobenius").item() == pytest.approx(-np.sqrt(10), rel=1e-6)
    assert svd_ratio(single, 10, "frobenius").item() == pytest.approx(-1.0, rel=1e-6)


@pytest.mark.parametrize("norm", ["nuclear", "frobenius"])
@pytest.mark.parametrize(
    "logits",
    [torch.zeros(4, 6), torch.ones(4, 6), torch.eye(6), torch.ones(1, 6), torch.diag(torch.tensor([1.0, 1e-30, 0, 0]))],
    ids=["zero", "rank one", "repeated", "one row", "tiny"],
)
def test_svd_gradient_is_finite_for_degenerate_spectra(logits, norm):
    logits = logits.clone().requires_grad_()
    loss = svd_ratio(logits, 2, norm)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() < 10


def test_bad_values_are_refused_by_name():
    logits = torch.zeros(3, 5)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        svd_ratio(logits, 0)
    with pytest.raises(ValueError, match="'spectral'"):
        svd_ratio(logits, 1, "spectral")
    with pytest.raises(ValueError, match="between 1 and the 5 classes, got 6"):
        diversity_entropy(logits, 6)
    with pytest.raises(ValueError, match="positive, got 0"):
        consistency_kl(logits, logits, 0)
    with pytest.raises(ValueError, match="differ in shape"):
        consistency_kl(logits, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"\(rows, classes\)"):
        diversity_covariance(torch.zeros(2, 3, 5))
