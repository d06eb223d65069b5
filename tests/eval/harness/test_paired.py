"""Paired differences on data whose answer is known."""

import numpy as np
import pytest

from eval.harness.paired import difference_of, resampled_means
from eval.harness.statistics import mcnemar


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
