"""The measurement of a sketch's error: against one that is computed by hand, and zero where nothing was left to chance."""

import torch

from ba_lora.benchmark.sketch_estimators import ESTIMATORS, errors
from tests.objective.test_chunked import draw

IN_USE = "bounded difference (in use)"


def test_near_the_teacher_the_estimator_in_use_is_far_better_than_u_and_a_full_sketch_is_exact():
    hidden, teacher, weight, _ = draw(9, 16, 333, "near")
    found, certain = errors(hidden, teacher, weight, 2.0, 20)
    assert found.keys() == ESTIMATORS.keys() and 0 < certain < 20
    row, median, batch = found[IN_USE]
    assert 0 < batch < row < 2 and 0 < median < 2
    assert row < 0.1 * found["u, systematic draws"][0]
    whole, certain = errors(hidden, teacher, weight, 2.0, 333)
    assert certain == 333 and whole[IN_USE][0] < 0.01 < whole["u, 64 largest + 64 independent draws"][0]


def test_the_error_of_the_rows_is_that_of_the_difference_to_the_exact_gradient(monkeypatch):
    hidden, teacher, weight, _ = draw(9, 16, 97)
    exact = torch.softmax(hidden @ weight.T, -1) - torch.softmax(teacher @ weight.T, -1)
    monkeypatch.setitem(ESTIMATORS, IN_USE, lambda p, q, kept: 1.5 * exact)
    row, median, batch = errors(hidden, teacher, weight, 1.0, 20)[0][IN_USE]
    assert all(abs(value - 0.5) < 1e-4 for value in (row, median, batch))
