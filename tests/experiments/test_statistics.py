"""Statistics over seeds and items, compared with numbers worked out by hand and with simulation."""

import numpy as np
import pytest

from ba_lora.experiments.tables import statistics
from ba_lora.experiments.tables.statistics import holm, is_apart, mean_sd, paired_intervals, paired_p


def test_mean_and_deviation_over_seeds():
    assert mean_sd([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_sd([5.0]) == (5.0, None)


def paired_interval(ours, theirs, **options):
    return paired_intervals([(ours, theirs)], **options)[0]


def one_by_one(ours, theirs, seed=0):
    """The interval as its definition says, of one pair: draw seeds and problems, and average what was drawn."""
    seeds, problems = ours.shape
    random, means = np.random.default_rng(seed), []
    for _ in range(statistics.RESAMPLES):
        of_seeds, of_problems = random.integers(seeds, size=seeds), random.integers(problems, size=problems)
        means.append((ours - theirs)[of_seeds][:, of_problems].sum() / (seeds * problems))
    return ((ours - theirs).mean(), *np.quantile(means, [0.025, 0.975]))


def test_the_intervals_of_many_pairs_are_those_of_each_alone():
    random = np.random.default_rng(4)
    shapes = [(5, 50), (3, 7), (5, 50), (1, 164), (1, 1), (5, 50)]
    pairs = [tuple((random.random(shape) < chance).astype(int) for chance in (0.6, 0.4)) for shape in shapes]
    assert paired_intervals(pairs) == [one_by_one(*pair) for pair in pairs]
    assert paired_intervals(pairs[:1], seed=1) == [one_by_one(*pairs[0], seed=1)] != paired_intervals(pairs[:1])
    assert paired_intervals([]) == []


def test_the_paired_interval_covers_a_known_difference_and_is_narrow_for_a_constant_one():
    random = np.random.default_rng(1)
    theirs = (random.random((3, 400)) < 0.5).astype(int)
    better = theirs.copy()
    wrong = np.flatnonzero(theirs.sum(0) == 0)[:40]
    better[:, wrong] = 1
    difference, low, high = paired_interval(better, theirs)
    assert difference == pytest.approx(len(wrong) / 400)
    assert 0 < low < difference < high < 2 * difference
    assert paired_interval(theirs, theirs) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="equal"):
        paired_interval(better, theirs[:2])


def test_the_paired_interval_holds_the_truth_about_95_times_in_100(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    random, held = np.random.default_rng(2), 0
    for trial in range(60):
        hard = random.random(200)
        theirs, ours = ((random.random((5, 200)) < chance).astype(int) for chance in (hard, hard * 0.9 + 0.05))
        _, low, high = paired_interval(ours, theirs, seed=trial)
        truth = (hard * 0.9 + 0.05 - hard).mean()
        held += low <= truth <= high
    assert held >= 52


def test_the_paired_p_is_that_of_students_table():
    assert paired_p([1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 0.0, 0.0, 0.0]) == pytest.approx(
        0.01324, abs=1e-5
    )  # t = 4.243, df 4
    assert paired_p([0.5, 0.6], [0.4, 0.5]) is None and paired_p([0.5], [0.4]) is None


def test_the_paired_p_is_uniform_where_there_is_no_difference():
    random = np.random.default_rng(3)
    values = [paired_p(*random.normal(size=(2, 5))) for _ in range(800)]
    assert 0.02 < np.mean(np.array(values) < 0.05) < 0.08


def test_holm_corrects_as_worked_out_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_apart_needs_both():
    assert is_apart((0.01, 0.02), 0.01) and is_apart(None, 0.01) and is_apart((-0.02, -0.01), 0.01)
    assert not is_apart((-0.01, 0.02), 0.01) and not is_apart((0.01, 0.02), 0.2) and not is_apart((0.01, 0.02), None)
