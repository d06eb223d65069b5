"""Paired statistics: against enumeration, and on data whose answer is known."""

import itertools
from math import comb

import numpy as np
import pytest

from eval.harness.paired import difference_of, mcnemar, resampled_means, sign_flips


@pytest.mark.parametrize(("more", "less"), [(0, 0), (5, 0), (0, 5), (7, 3), (12, 12), (40, 21)])
def test_mcnemar_is_the_two_sided_binomial_test(more, less):
    n = more + less
    chances = [comb(n, k) / 2**n for k in range(n + 1)]
    expected = min(1.0, 2 * sum(chances[: min(more, less) + 1]))
    assert mcnemar(more, less) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_takes_tens_of_thousands_of_items():
    assert mcnemar(15000, 15000) == 1.0 and mcnemar(16000, 14000) < 1e-20


def test_sign_flips_agree_with_all_flips_of_a_small_sample():
    differences = np.array([0.4, -0.1, 0.35, 0.2, 0.0, 0.05, -0.3, 0.6])
    apart = differences[differences != 0]
    sums = [abs(np.dot(signs, apart)) for signs in itertools.product((-1, 1), repeat=len(apart))]
    exact = np.mean(np.array(sums) >= abs(apart.sum()) - 1e-12)
    assert sign_flips(differences, resamples=20000) == pytest.approx(exact, abs=0.015)
    assert sign_flips(np.zeros(4)) == 1.0


def test_resampled_means_have_the_spread_of_a_mean():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    means = resampled_means(values, seed=1)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.std() == pytest.approx(values.std() / 20, rel=0.06)
    assert (resampled_means(values, seed=1) == means).all()


def test_right_or_wrong_is_tested_by_mcnemar_and_numbers_by_sign_flips():
    a, b = [1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 0]
    found = difference_of(b, a)
    assert (found.test, found.p, found.mean) == ("McNemar", mcnemar(3, 0), 0.5)
    assert difference_of([0.5, 1.0], [0.25, 1.0]).test == "sign flips"
    with pytest.raises(ValueError, match="same items"):
        difference_of([1], [1, 0])
