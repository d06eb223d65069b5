"""The schedules of lambda compared with values worked out by hand, and the presets with the published numbers."""

import math

import pytest
import torch

from ba_lora.errors import UserError
from ba_lora.objective.regularizers import entropy
from ba_lora.objective.schedules import SCHEDULES, adaptive, factor
from ba_lora.objective.settings import Objective


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 1, 50: 1, 100: 1}),
        ("cosine", {0: 1, 50: 0.1 + 0.9 * 0.5, 100: 0.1, 25: 0.1 + 0.45 * (1 + math.cos(math.pi / 4))}),
        ("linear_warmup", {0: 0, 10: 0.5, 20: 1, 90: 1}),
        ("quadratic_warmup", {0: 0, 10: 0.25, 20: 1, 90: 1}),
        ("two_phase", {0: 0, 19: 0, 20: 0, 21: 0.2, 24: 0.8, 25: 1, 99: 1}),
    ],
)
def test_factor_at_hand_worked_steps(schedule, expected):
    for step, value in expected.items():
        assert factor(schedule, step, 100, warmup=0.2, ramp=0.05) == pytest.approx(value)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_factor_stays_between_0_and_1_even_in_the_shortest_run(schedule):
    for total in (1, 2, 3, 7):
        for step in range(total):
            assert 0 <= factor(schedule, step, total, 0.2, 0.05) <= 1


def test_two_phase_ramps_over_one_step_when_the_ramp_rounds_to_none():
    assert [factor("two_phase", step, 10, 0.2, 0.05) for step in range(5)] == [0, 0, 0, 1, 1]


def test_unknown_schedule_suggests_the_nearest():
    with pytest.raises(UserError, match="'cosin' is not known, did you mean 'cosine'"):
        factor("cosin", 0, 10)


def test_an_adaptive_weight_is_lowest_for_a_uniform_teacher_and_highest_for_a_certain_one():
    uniform, certain = entropy(torch.zeros(3, 8)).mean().item(), entropy(1e4 * torch.eye(8)).mean().item()
    assert adaptive(0.2, 1.0, uniform, 8) == pytest.approx(0.2, abs=1e-6)
    assert adaptive(0.2, 1.0, certain, 8) == pytest.approx(1.0, abs=1e-6)
    assert adaptive(0.2, 1.0, uniform / 2, 8) == pytest.approx(0.6)


def test_presets_hold_the_published_numbers():
    iclr, v5 = Objective.preset("iclr"), Objective.preset("paper-v5")
    assert (iclr.lambda1, iclr.lambda2, iclr.lambda3) == (0.025, 0.005, 0.005)
    assert (iclr.temperature, iclr.top_k, iclr.svd_k, iclr.svd_norm) == (2.0, 20, 10, "frobenius")
    assert iclr.weights(0, 100) == (0.025, 0.0, 0.0)
    assert iclr.weights(100, 100) == pytest.approx((0.0025, 0.005, 0.005))
    assert (v5.lambda1, v5.lambda2, v5.lambda3) == v5.weights(0, 100) == v5.weights(99, 100) == (1e-4, 3e-4, 1e-4)
    assert (v5.temperature, v5.top_k, v5.svd_k, v5.svd_norm) == (1.0, None, 3, "nuclear")
    nlu = Objective.preset("iclr", "nlu")
    assert (nlu.lambda1, nlu.lambda2, nlu.lambda3, nlu.svd_k, nlu.diversity) == (0.15, 0.03, 0.03, 5, "covariance")
    assert Objective.preset("paper-v5", "nlu").consistency == "mse"


def test_objective_refuses_bad_values_by_name():
    for change, message in [
        ({"svd_k": 0}, "svd_k must be at least 1, got 0"),
        ({"top_k": -1}, "top_k must be at least 1"),
        ({"lambda2": -0.5}, "lambda2 must be a number of at least 0, got -0.5"),
        ({"lambda1": float("nan")}, "lambda1 must be a number"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"warmup": 1.5}, "warmup is a fraction"),
        ({"svd_norm": "nuclar"}, "did you mean 'nuclear'"),
        ({"lambda9": 1}, "objective option 'lambda9' is not known"),
    ]:
        with pytest.raises(UserError, match=message):
            Objective.preset("iclr", **change)
    with pytest.raises(UserError, match="did you mean 'iclr'"):
        Objective.preset("iclr2")
