"""The objective from hidden states, compared with the dense form, with numpy, and at its edges."""

import os
import shutil

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ba_lora.objective.chunked import (
    TeacherStats,
    chunked_objective,
    factor_of,
    mean_entropy,
    rows_of_a_chunk,
    stats_of,
)
from ba_lora.objective.dense import dense_objective, observed
from ba_lora.objective.settings import TERMS, Objective

WEIGHTS = (0.7, 0.4, 0.5)
FORMS = {
    "paper-v5": Objective.preset("paper-v5"),
    "iclr": Objective.preset("iclr"),
    "T=1.5": Objective(temperature=1.5, svd_k=4, svd_norm="frobenius"),
    "T=2, whole": Objective(temperature=2.0, svd_k=2),
}
SHAPES = [(1, 6, 29), (2, 16, 97), (7, 24, 1009), (33, 16, 333), (20, 40, 31), (64, 48, 2003)]  # N, d, V; V < d once
STUDENTS = {"near": 1e-2, "far": 1.0, "equal": 0.0}


def draw(rows, width, vocabulary, student="far", dtype=torch.float32, seed=0):
    """hidden and teacher_hidden (N, d), weight (V, d) and targets (N,); the logits have a standard deviation of about 2."""
    generator = torch.Generator().manual_seed(seed + 1000 * rows + vocabulary)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    teacher, weight = normal(rows, width), 2 * normal(vocabulary, width) / width**0.5
    hidden = teacher + STUDENTS[student] * normal(rows, width)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return hidden.to(dtype), teacher.to(dtype), weight.to(dtype), targets


def chunked(form, hidden, teacher, weight, targets, lambdas=WEIGHTS, **options):
    """(loss, terms, gradient) of the form under test."""
    hidden, autocast = hidden.clone().requires_grad_(), options.pop("autocast", False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, terms = chunked_objective(hidden, teacher, weight, targets, form, lambdas, **options)
    loss.backward()
    return loss.detach(), terms, hidden.grad


def dense(form, hidden, teacher, weight, targets, lambdas=WEIGHTS, **options):
    """The same from the logits, in float64."""
    hidden, teacher, weight = hidden.double().requires_grad_(), teacher.double(), weight.double()
    loss, terms = dense_objective(hidden @ weight.T, teacher @ weight.T, targets, form, lambdas, **options)
    loss.backward()
    return loss.detach(), terms, hidden.grad


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def assert_equal(ours, reference, value=1e-6, gradient=1e-5, term=1e-5, absolute=1e-6):
    assert ours[0].item() == pytest.approx(reference[0].item(), rel=value)
    for name in TERMS:
        assert ours[1][name].item() == pytest.approx(reference[1][name].item(), rel=term, abs=absolute), name
    assert relative(ours[2], reference[2]) < gradient


@pytest.mark.parametrize(
    ("vocabulary", "device", "rows"),
    [
        (32000, "cpu", 393),
        (128256, "cpu", 98),
        (32000, "cuda", 2097),
        (128256, "cuda", 523),
        (32000, "mps", 393),
        (1 << 28, "cuda", 1),
    ],
)
def test_a_chunk_holds_as_many_rows_as_suit_the_device(vocabulary, device, rows):
    assert rows_of_a_chunk(vocabulary, device=device) == rows
    assert rows_of_a_chunk(vocabulary, 7, device) == 7


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_dense_objective_for_every_shape_form_and_chunk(shape, form, student):
    case = draw(*shape, student)
    reference = dense(FORMS[form], *case)
    for chunk_size in (1, 7, shape[0] + 5, None):
        ours = chunked(FORMS[form], *case, chunk_size=chunk_size)
        assert_equal(ours, reference)
        assert student != "equal" or ours[1]["consistency"].item() == 0.0


@pytest.mark.parametrize("lambdas", [WEIGHTS, (0.7, 0.0, 0.0), (0.0, 0.0, 0.0)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_entropy_and_accuracy_come_from_the_chunks_and_change_nothing_else(form, lambdas):
    for shape in [(7, 24, 1009), (20, 40, 31)]:
        case = draw(*shape, dtype=torch.float64)
        hidden, _, weight, targets = case
        targets[::2] = (hidden @ weight.T).argmax(-1)[::2]  # half of the targets are the most likely token
        plain = chunked(FORMS[form], *case, lambdas, chunk_size=3, num_items=40)
        ours = chunked(FORMS[form], *case, lambdas, chunk_size=3, num_items=40, observe=True)
        torch.testing.assert_close([plain[0], plain[2]], [ours[0], ours[2]], rtol=1e-12, atol=1e-14)
        p = softmax((hidden @ weight.T).numpy())
        wanted = {"entropy": -(p * np.log(p)).sum() / 40, "accuracy": (p.argmax(-1) == targets.numpy()).sum() / 40}
        from_logits = observed(hidden @ weight.T, targets, 40)
        for name, value in wanted.items():
            assert ours[1][name].item() == pytest.approx(value, rel=1e-9), name
            assert from_logits[name].item() == pytest.approx(value, rel=1e-7), name
        assert ours[1]["accuracy"] >= len(targets) / 2 / 40


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_dense_objective_to_1e_9_in_float64(form, student):
    for shape in SHAPES:
        case = draw(*shape, student, dtype=torch.float64)
        ours, reference = chunked(FORMS[form], *case, chunk_size=7), dense(FORMS[form], *case)
        assert ours[2].dtype == torch.float64
        assert_equal(ours, reference, value=1e-9, gradient=1e-9, term=1e-9, absolute=1e-12)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(form, hidden, teacher, weight, targets, taught=1.0):
    """(loss, gradient for the hidden states) from the equations, in numpy and float64. taught: each row's weight in the consistency."""
    h, t, w = hidden.double().numpy(), teacher.double().numpy(), weight.double().numpy()
    z, rows, temperature = h @ w.T, np.arange(len(h)), form.temperature
    p = softmax(z)
    loss = -np.log(p[rows, targets]).sum()
    slope = p.copy()
    slope[rows, targets] -= 1

    before, after = softmax(t @ w.T / temperature), softmax(z / temperature)
    taught = np.broadcast_to(taught, len(h))[:, None]
    loss += WEIGHTS[0] * temperature**2 * (taught * before * (np.log(before) - np.log(after))).sum()
    slope += WEIGHTS[0] * temperature * taught * (after - before)

    for n in rows:
        kept = np.argsort(-z[n])[: form.top_k or len(w)]
        q = softmax(z[n, kept])
        entropy = -(q * np.log(q)).sum()
        loss -= WEIGHTS[1] * entropy
        slope[n, kept] += WEIGHTS[1] * q * (np.log(q) + entropy)

    left, sigma, right = np.linalg.svd(z, full_matrices=False)
    top = sigma[: form.svd_k].sum()
    if form.svd_norm == "nuclear":
        total, growth = sigma.sum(), left @ right
    else:
        total = np.sqrt((z**2).sum())
        growth = z / total
    leading = left[:, : form.svd_k] @ right[: form.svd_k]
    loss, slope = loss / len(h), slope / len(h)
    loss -= WEIGHTS[2] * top / total
    slope += WEIGHTS[2] * (top / total**2 * growth - leading / total)
    return loss, slope @ w


@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_equal_the_equations_in_numpy(form):
    case = draw(12, 16, 203)
    loss, gradient = by_hand(FORMS[form], *case)
    ours = chunked(FORMS[form], *case, chunk_size=5)
    assert ours[0].item() == pytest.approx(loss, rel=1e-6)
    assert relative(ours[2], torch.from_numpy(gradient)) < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [[], [7], [2, 3, 11], list(range(12))], ids=len)
def test_a_teacher_of_some_rows_counts_these_alone_with_their_weight(form, rows):
    hidden, teacher, weight, targets = draw(12, 16, 203)
    index = torch.tensor(rows, dtype=torch.long)
    loss, gradient = by_hand(FORMS[form], hidden, teacher, weight, targets, 2.5 * np.isin(np.arange(12), rows))
    options, stats = {"teacher_rows": index, "teacher_weight": 2.5}, stats_of(teacher, weight, FORMS[form].temperature)
    stored = {"teacher_stats": (stats.u[index], stats.c[index]), **options}
    for found in (
        chunked(FORMS[form], hidden, teacher[index], weight, targets, chunk_size=2, **options),
        chunked(FORMS[form], hidden, None, weight, targets, **stored),
        dense(FORMS[form], hidden, teacher[index], weight, targets, **options),
    ):
        assert found[0].item() == pytest.approx(loss, rel=1e-6)
        assert relative(found[2], torch.from_numpy(gradient)) < 1e-5
        assert (found[1]["consistency"].item() == 0.0) == (not rows)


def test_128256_classes_are_summed_in_float32_without_harm():
    case = draw(8, 64, 128_256)
    for form in ("iclr", "paper-v5"):
        assert_equal(chunked(FORMS[form], *case), dense(FORMS[form], *case))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(7)], ids=["none", "int", "tensor"])
def test_no_rows_give_a_connected_zero(form, num_items):
    hidden, teacher, weight, targets = draw(3, 8, 41)
    ours = chunked(FORMS[form], hidden[:0], teacher[:0], weight, targets[:0], num_items=num_items)
    assert ours[0].item() == 0.0 and ours[2].shape == (0, 8)
    assert all(term.item() == 0.0 for term in ours[1].values())


@pytest.mark.parametrize("items", [20, torch.tensor(20), torch.tensor(20.0)], ids=["int", "tensor", "float tensor"])
def test_rows_of_the_whole_step_and_the_spectrums_scale_enter_as_in_the_dense_form(items):
    case, options = draw(9, 16, 97), {"num_items": items, "spectrum_scale": 0.25}
    assert_equal(chunked(FORMS["iclr"], *case, **options), dense(FORMS["iclr"], *case, **options))


@pytest.mark.parametrize("lambdas", [(0, 0, 0), (0.7, 0, 0), (0, 0.4, 0), (0, 0, 0.5), (0.7, 0, 0.5)], ids=str)
@pytest.mark.parametrize("form", ["paper-v5", "iclr", "T=1.5"])
def test_a_term_of_weight_zero_is_none_and_all_terms_only_reports_it(form, lambdas):
    case = draw(9, 16, 97)
    ours, reference = chunked(FORMS[form], *case, lambdas), dense(FORMS[form], *case, lambdas)
    assert [ours[1][name] is None for name in TERMS] == [False, *(weight == 0 for weight in lambdas)]
    assert ours[0].item() == pytest.approx(reference[0].item(), rel=1e-6)
    assert relative(ours[2], reference[2]) < 1e-5
    reported = chunked(FORMS[form], *case, lambdas, all_terms=True)
    assert_equal(reported, dense(FORMS[form], *case, lambdas, all_terms=True))
    assert reported[0].item() == pytest.approx(ours[0].item(), rel=1e-6)
    assert not any(term.requires_grad for term in reported[1].values())


def test_all_terms_without_a_teacher_leave_consistency_out():
    hidden, _, weight, targets = draw(5, 16, 97)
    _, terms, _ = chunked(FORMS["iclr"], hidden, None, weight, targets, (0.0, 0.4, 0.5), all_terms=True)
    assert terms["consistency"] is None and terms["diversity"] is not None


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("form", FORMS)
def test_stored_statistics_of_the_teacher_replace_its_hidden_states(form, student):
    hidden, teacher, weight, targets = draw(33, 16, 333, student)
    log_p = torch.log_softmax(teacher.double() @ weight.double().T / FORMS[form].temperature, -1)
    u, c = (log_p.exp() @ weight.double()).float(), (log_p.exp() * log_p).sum(-1).float()
    made = stats_of(teacher, weight, FORMS[form].temperature, chunk_size=7)
    assert relative(made.u, u) < 1e-5 and relative(made.c, c) < 1e-5
    for chunk_size in (7, None):
        ours = chunked(
            FORMS[form], hidden, None, weight, targets, teacher_stats=TeacherStats(u, c), chunk_size=chunk_size
        )
        assert_equal(ours, dense(FORMS[form], hidden, teacher, weight, targets))


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_stays_close_to_float32_on_the_same_rounded_inputs(form):
    """The product with the head rounds the logits to 8 bits, as in the model itself; the sums are float32."""
    hidden, teacher, weight, targets = draw(33, 32, 1009, dtype=torch.bfloat16)
    ours = chunked(FORMS[form], hidden, teacher, weight, targets)
    assert ours[2].dtype == torch.bfloat16 and ours[0].dtype == torch.float32
    exact = chunked(FORMS[form], hidden.float(), teacher.float(), weight.float(), targets)
    assert_equal(ours, exact, value=2e-3, gradient=1e-2, term=5e-3, absolute=0)


def test_autocast_does_not_reach_inside():
    case = draw(9, 16, 97)
    plain = chunked(FORMS["iclr"], *case)
    inside = chunked(FORMS["iclr"], *case, autocast=True)
    assert inside[0].item() == plain[0].item() and torch.equal(inside[2], plain[2])


def test_a_bfloat16_body_under_autocast_with_a_float32_head():
    hidden, teacher, weight, targets = draw(9, 16, 97)
    ours = chunked(FORMS["iclr"], hidden.bfloat16(), teacher.bfloat16(), weight, targets, autocast=True)
    assert ours[2].dtype == torch.bfloat16
    assert ours[0].item() == pytest.approx(chunked(FORMS["iclr"], hidden, teacher, weight, targets)[0].item(), rel=1e-2)


def through_a_body(case, body, wrap):
    """Gradient of a body's weight through the objective."""
    hidden, teacher, weight, targets = case

    def whole(x):
        form = Objective(temperature=2.0, top_k=20, svd_k=3, svd_norm="frobenius")
        return chunked_objective(wrap(body, x), teacher, weight, targets, form, WEIGHTS)[0]

    return whole, hidden


def test_gradient_checkpointing_of_the_body_gives_the_same_gradient():
    case, gradients = draw(9, 16, 97), []
    body = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh())
    for wrap in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        whole, x = through_a_body(case, body, wrap)
        gradients.append(torch.autograd.grad(whole(x), body[0].weight)[0])
    assert torch.equal(*gradients)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile_of_a_caller_gives_the_same_gradient(backend):
    if backend == "inductor" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("inductor needs a C++ compiler")
    body = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh())
    whole, x = through_a_body(draw(9, 16, 97), body, lambda f, x: f(x))
    expected = torch.autograd.grad(whole(x), body[0].weight)[0]
    compiled = torch.compile(whole, backend=backend)
    assert relative(torch.autograd.grad(compiled(x), body[0].weight)[0], expected) < 1e-5


def test_the_gradient_is_scaled_by_what_comes_after():
    hidden, teacher, weight, targets = draw(9, 16, 97)
    whole, x = through_a_body((hidden.requires_grad_(), teacher, weight, targets), None, lambda f, x: x)
    (one,) = torch.autograd.grad(whole(x), hidden)
    (three,) = torch.autograd.grad(3 * whole(x), hidden)
    assert relative(three, 3 * one) < 1e-6


def test_what_cannot_work_is_refused():
    hidden, teacher, weight, targets = draw(3, 8, 41)
    with pytest.raises(ValueError, match="no gradient for the head"):
        chunked(FORMS["iclr"], hidden, teacher, weight.requires_grad_(), targets)
    with pytest.raises(ValueError, match="needs teacher_hidden or teacher_stats"):
        chunked(FORMS["iclr"], hidden, None, weight.detach(), targets)
    with pytest.raises(ValueError, match="the teacher's part is of 2 rows"):
        chunked(FORMS["iclr"], hidden, teacher[:2], weight.detach(), targets)
    with pytest.raises(ValueError, match="the teacher's part is of 3 rows"):
        chunked(FORMS["iclr"], hidden, teacher, weight.detach(), targets, teacher_rows=torch.tensor([0, 2]))


def test_mean_entropy_equals_that_of_the_logits():
    hidden, _, weight, _ = draw(9, 16, 97)
    p = torch.softmax(hidden.double() @ weight.double().T / 2, -1)
    expected = -(p * p.log()).sum(-1).mean().item()
    assert mean_entropy(hidden, weight, 2.0, chunk_size=4).item() == pytest.approx(expected, rel=1e-6)


# The head's factor: R with RᵀR = WᵀW, so that H·Rᵀ has the singular values of H·Wᵀ.

HEADS = {
    "tall": lambda normal: normal(1009, 24),
    "fewer classes than dimensions": lambda normal: normal(17, 24),
    "square": lambda normal: normal(24, 24),
    "of rank 10": lambda normal: normal(1009, 10) @ normal(10, 24),
    "zero": lambda normal: torch.zeros(50, 24),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
def test_the_factors_gram_matrix_is_the_heads(head, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = HEADS[head](lambda *shape: torch.randn(*shape, generator=generator)).to(dtype)
    factor = factor_of(weight)
    assert factor.shape == (min(weight.shape), weight.shape[1])
    assert factor.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    gram = weight.double().T @ weight.double()
    tolerance = 1e-6 if dtype != torch.float64 else 1e-12
    assert (factor.double().T @ factor.double() - gram).norm() <= tolerance * gram.norm()
