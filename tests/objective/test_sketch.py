"""The sketch of a teacher: right on average over all draws, zero for an equal student, the same dense and chunked."""

import itertools
import math

import numpy as np
import pytest
import torch

from ba_lora.objective.chunked import TeacherStats
from ba_lora.objective.dense import dense_objective
from ba_lora.objective.draw import draw as draw_words
from ba_lora.objective.draw import sketch_of, thresholds
from ba_lora.objective.sketch import Sketch, Words, code_bits, decode, encode, inclusion, sketched_kl
from tests.objective.test_chunked import FORMS, assert_equal, by_hand, chunked, dense, draw, relative, softmax

SMALL = 9  # tokens, of which 4 are kept


def sketch(hidden, weight, temperature, entries=20, seed=0):
    uniforms = torch.rand(len(hidden), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return sketch_of(hidden, weight, temperature, uniforms, entries, chunk_size=7).read(len(weight))


def all_draws(p, entries):
    """Every sketch of one row p (1, V), with the probability of each: the uniforms between all their break points.

    The rounding of a probability breaks at its distance to the lower code; the systematic draw where π sums to u plus a whole number.
    """
    vocabulary = p.shape[1]
    bits = code_bits(vocabulary)
    bottom = encode(p, torch.ones(1, 1, dtype=torch.float64), bits)
    low, high = decode(bottom, bits), decode(bottom + 1, bits)
    rounding = _intervals(((p - low) / (high - low))[0].tolist())
    parts, probabilities = [], []
    for up, wide in rounding:
        stored = decode(encode(p, torch.tensor([[up]], dtype=torch.float64), bits), bits)
        threshold = thresholds(stored, min(entries, vocabulary)).float().double()
        line = inclusion(stored, threshold[:, None], vocabulary).cumsum(-1)[0]
        for start, long in _intervals((line % 1).tolist()):
            parts.append(
                Words(*draw_words(p, torch.tensor([[start, up]], dtype=torch.float64), entries), torch.zeros(1))
            )
            probabilities.append(wide * long)
    together = Words(*(torch.cat(each) for each in zip(*parts, strict=True)))
    return together.read(vocabulary), torch.tensor(probabilities, dtype=torch.float64)


def _intervals(breaks):
    """(middle, length) of the parts of [0, 1] between the break points."""
    edges = sorted({0.0, 1.0, *(each for each in breaks if 0 < each < 1)})
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("entries", [2, 4, 8, SMALL, 20])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_mean_over_all_draws_is_the_exact_value_and_gradient(temperature, entries):
    hidden, teacher, weight, targets = draw(1, 6, SMALL, dtype=torch.float64)
    form = FORMS["paper-v5" if temperature == 1 else "iclr"]
    p = torch.softmax(teacher @ weight.T / temperature, -1)
    every, probability = all_draws(p, entries)
    count = len(probability)
    assert probability.sum().item() == pytest.approx(1, abs=1e-12) and count > 5
    inclusion_weights = every.weight.double() * every.p.double() @ torch.ones(every.p.shape[1], 1, dtype=torch.float64)
    assert (probability @ inclusion_weights).item() == pytest.approx(1, abs=1e-6)
    u = (every.weight.double() * every.p.double())[..., None] * weight[every.ids]
    assert relative(probability @ u.sum(1), (p @ weight)[0]) < 1e-6

    repeated = hidden.expand(count, -1), weight, targets.expand(count)
    lambdas = (0.7, 0.0, 0.0)
    _, _, gradient = chunked(form, repeated[0], None, *repeated[1:], lambdas, teacher_stats=every, num_items=1)
    _, _, exact = dense(form, hidden.clone(), teacher, weight, targets, lambdas)
    assert relative(probability @ gradient, exact[0]) < 1e-6
    each_draw = (Sketch(*(each[n : n + 1] for each in every)) for n in range(count))
    kl = [sketched_kl(hidden @ weight.T, one, temperature) for one in each_draw]
    before, after = (softmax((x @ weight.T / temperature).numpy()) for x in (teacher, hidden))
    value = temperature**2 * (before * np.log(before / after)).sum()
    assert (probability @ torch.stack(kl)).item() == pytest.approx(value, rel=1e-6)
    if entries < SMALL:
        assert gradient.std(0).norm() > 1e-3 * exact.norm()  # the draws differ


@pytest.mark.parametrize("bits", [14, 15, 22])
def test_a_probability_is_rounded_to_one_of_its_neighbours_and_is_right_on_average(bits):
    p = torch.tensor([[1.0, 0.3, 1e-3, 2.0**-32, 1e-11, 0.0]], dtype=torch.float64)
    uniforms = (torch.arange(20000, dtype=torch.float64)[:, None] + 0.5) / 20000
    rounded = decode(encode(p.expand(20000, -1), uniforms, bits), bits)
    step = 2 ** (32 / (2**bits - 2)) - 1
    assert ((rounded - p).abs() <= step * p + 2.0**-32 * (p < 2.0**-32)).all()
    assert ((rounded.mean(0) - p[0]).abs() <= 1e-4 * step * p[0] + 1e-4 * 2.0**-32).all()


@pytest.mark.parametrize("vocabulary", [2, 3, 768, 32000, 128256, 256000])
def test_a_word_holds_every_token_of_the_vocabulary(vocabulary):
    p = torch.full((1, vocabulary), 1e-4 / vocabulary)
    p[0, -1] = 1 - 1e-4
    words, threshold = draw_words(p, torch.tensor([[0.7, 0.7]], dtype=torch.float64), 2)
    read = Words(words, threshold, torch.zeros(1)).read(vocabulary)
    assert words.dtype == torch.int32 and read.ids[0, -1] == vocabulary - 1 and read.ids.min() >= 0
    assert read.p[0, -1].item() == pytest.approx(1 - 1e-4, rel=2e-3) and read.weight[0, -1] == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("student", ["near", "far", "equal"])
def test_chunked_equals_autograd_through_the_dense_form(form, student):
    hidden, teacher, weight, targets = draw(33, 16, 333, student)
    kept = sketch(teacher, weight, FORMS[form].temperature)
    z = hidden.double().requires_grad_()
    loss, terms = dense_objective(z @ weight.double().T, kept, targets, FORMS[form], (0.7, 0.4, 0.5))
    loss.backward()
    for chunk_size in (7, None):
        ours = chunked(FORMS[form], hidden, None, weight, targets, teacher_stats=kept, chunk_size=chunk_size)
        assert_equal(ours, (loss.detach(), terms, z.grad))


@pytest.mark.parametrize("form", FORMS)
def test_a_sketch_of_the_whole_vocabulary_is_the_teacher(form):
    hidden, teacher, weight, targets = draw(20, 16, 31)
    kept = sketch(teacher, weight, FORMS[form].temperature, 96)
    assert kept.ids.shape == (20, 31) and (kept.weight == 1).all()
    ours = chunked(FORMS[form], hidden, None, weight, targets, teacher_stats=kept)
    assert_equal(ours, dense(FORMS[form], hidden, teacher, weight, targets))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_for_an_equal_student_value_and_gradient_are_zero_up_to_the_rounding_of_what_is_stored(temperature):
    """With 96 of 32,000 tokens a probability has 17 bits, that is steps of 1.7e-4. Without the student's draws û alone would be wrong."""
    hidden, _, weight, targets = draw(8, 64, 32000, "equal", dtype=torch.float64)
    form = FORMS["paper-v5" if temperature == 1 else "iclr"]
    kept = sketch(hidden, weight, temperature, 96)
    options = {"lambdas": (1.0, 0.0, 0.0), "teacher_stats": kept}
    _, terms, gradient = chunked(form, hidden, None, weight, targets, **options)
    assert 0 <= terms["consistency"].item() < 1e-7
    _, _, task = chunked(form, hidden, None, weight, targets, lambdas=(0.0, 0.0, 0.0))
    p = torch.softmax(hidden @ weight.T / temperature, -1)
    u = ((kept.weight * kept.p).double()[..., None] * weight[kept.ids]).sum(1)
    of_u = temperature * (p @ weight - u) / len(hidden)  # the gradient of c − û·h/T + log Σ exp(z/T)
    assert (gradient - task).norm() < 1e-3 * of_u.norm()
    assert (gradient - task).norm() < 1e-4 * task.norm()


def test_the_value_is_never_negative_and_the_entropy_is_the_teachers():
    for seed in range(5):
        hidden, teacher, weight, _ = draw(9, 16, 333, seed=seed)
        kept = sketch(teacher, weight, 2.0, 8, seed)
        assert sketched_kl(hidden @ weight.T, kept, 2.0) > 0
        log_p = torch.log_softmax(teacher @ weight.T / 2, -1)
        torch.testing.assert_close(kept.entropy, -(log_p.exp() * log_p).sum(-1))
    assert math.isclose(TeacherStats(torch.zeros(1, 2), torch.tensor([-0.5])).entropy.item(), 0.5)


def test_by_hand_in_numpy_from_the_equation():
    hidden, teacher, weight, targets = draw(5, 16, 97, dtype=torch.float64)
    form, temperature = FORMS["iclr"], 2.0
    kept = sketch(teacher, weight, temperature)
    ids, p, over_pi, tau = (each.double().numpy() for each in kept[:4])
    w, q = weight.numpy(), softmax((hidden @ weight.T / temperature).numpy())
    slope = np.zeros_like(q)
    for n in range(5):
        f = np.minimum(q[n], tau[n])
        slope[n] = q[n] - f
        for v, each, factor in zip(ids[n].astype(int), p[n], over_pi[n], strict=True):
            slope[n, v] += factor * (f[v] - each)
        slope[n] -= q[n] * slope[n].sum()
    _, gradient = by_hand(form, hidden, teacher, weight, targets)
    _, _, ours = chunked(form, hidden, None, weight, targets, teacher_stats=kept)
    exact = softmax((teacher @ weight.T / temperature).numpy())
    expected = torch.as_tensor(gradient) + 0.7 * temperature * torch.tensor((slope - (q - exact)) @ w) / 5
    assert relative(ours, expected) < 1e-6
