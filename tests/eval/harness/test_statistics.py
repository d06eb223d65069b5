"""Statistics over seeds and items, compared with numbers worked out by hand and with simulation."""

import itertools
from math import comb

import numpy as np
import pytest
from scipy import stats

from eval.harness import statistics
from eval.harness.statistics import (
    crossed_interval,
    crossed_test,
    holm,
    is_apart,
    mcnemar,
    mean_sd,
    paired_intervals,
    paired_p,
    sign_flip_p,
    sign_flips,
    t_interval,
    verdict,
)


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


def test_the_t_interval_is_scipys_and_that_of_students_table():
    values = np.random.default_rng(5).normal(-3, 4, size=12)
    for level in (0.9, 0.95):
        made = t_interval(values, level)
        assert made.ends == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval(level))
    assert t_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, 1.03676, 4.96324), abs=1e-5)  # t = 2.776, df 4
    for wrong in ([1.0], [], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="at least two"):
            t_interval(wrong)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_the_sign_flip_p_is_the_share_of_all_patterns_of_signs(count):
    random = np.random.default_rng(count)
    for values in (
        random.normal(1, 1, count),
        random.integers(-2, 3, count).astype(float),
    ):  # the second has ties and zeros
        patterns = itertools.product((1, -1), repeat=count)
        means = np.array([abs(np.mean(values * np.array(signs))) for signs in patterns])
        assert sign_flip_p(values) == np.mean(means >= abs(values.mean()) - 1e-12)


def test_the_sign_flip_p_of_one_sign_is_the_smallest_and_of_zeros_is_one():
    assert (
        sign_flip_p([0.1, 0.2, 0.3] * 4) == 2 / 2**12 == sign_flip_p([-0.1, -0.2, -0.3] * 4)
    )  # sums of 0.1 are not exact
    assert sign_flip_p([0.0] * 3) == 1 and sign_flip_p([1.0, -1.0]) == 1
    assert sign_flip_p([1.0] * 20) == 2 / 2**20
    for wrong in ([], [1.0] * 21, [[1.0]]):
        with pytest.raises(ValueError, match="1 to 20"):
            sign_flip_p(wrong)


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


def test_the_crossed_interval_is_that_of_the_mean_squares():
    values = np.array([[3.0, 1.0, 0.0, 2.0], [1.0, 1.0, -1.0, 1.0], [0.0, 4.0, -2.0, 2.0]])
    mean, seeds, problems = 1.0, [1.5, 0.5, 1.0], [4 / 3, 2.0, -1.0, 5 / 3]
    rest = sum((values[s, p] - seeds[s] - problems[p] + mean) ** 2 for s in range(3) for p in range(4)) / 6
    of_seeds = 4 * sum((each - mean) ** 2 for each in seeds) / 2
    of_problems = 3 * sum((each - mean) ** 2 for each in problems) / 3
    assert of_seeds < rest < of_problems  # so the residual stands for the seeds
    half = 2.919986 * np.sqrt((rest + of_problems - rest) / 12)  # t of 0.95, df 2
    assert crossed_interval(values) == pytest.approx((mean, mean - half, mean + half), abs=1e-5)


def test_the_crossed_interval_is_the_t_interval_where_problems_add_nothing_and_never_narrower():
    random = np.random.default_rng(6)
    plain = random.normal(size=(5, 1)) + np.zeros((5, 30))  # every problem alike
    assert crossed_interval(plain, 0.9) == pytest.approx(t_interval(plain[:, 0], 0.9))
    for _ in range(20):
        values = random.integers(-1, 2, size=(4, 25)).astype(float)
        wide, narrow = crossed_interval(values, 0.9), t_interval(values.mean(1), 0.9)
        assert wide.low <= narrow.low + 1e-12 and narrow.high - 1e-12 <= wide.high
    alike = np.tile(np.r_[1.0, -1.0, np.zeros(28)], (3, 1))
    alike[:, 2:5] += [[1, 0, 0], [0, 1, 0], [0, 0, 1]]  # every seed has the same mean, by other problems
    assert t_interval(alike.mean(1), 0.9).low == pytest.approx(1 / 30) and crossed_interval(alike).low < 0
    with pytest.raises(ValueError, match="two seeds"):
        crossed_interval(values[:1])


@pytest.mark.parametrize("seeds", [5, 30])
def test_the_crossed_interval_holds_the_truth_about_90_times_in_100(seeds):
    """The truth is over all seeds and problems: both draw an effect of their own."""
    random, held, trials = np.random.default_rng(seeds), 0, 400
    for _ in range(trials):
        effects = 0.01 * random.normal(size=(seeds, 1)) + 0.1 * random.normal(size=100)
        _, low, high = crossed_interval(0.2 + effects + 0.3 * random.normal(size=(seeds, 100)))
        held += low <= 0.2 <= high
    assert 0.86 < held / trials < 0.97


def test_the_crossed_test_is_students_with_satterthwaites_degrees_of_freedom():
    values = np.array([[3.0, 1.0, 0.0, 2.0], [1.0, 1.0, -1.0, 1.0], [0.0, 4.0, -2.0, 2.0]])
    seeds, problems, rest = np.array([1.5, 0.5, 1.0]), np.array([4 / 3, 2.0, -1.0, 5 / 3]), 0.0
    rest = sum((values[s, p] - seeds[s] - problems[p] + 1) ** 2 for s in range(3) for p in range(4)) / 6
    by_seeds, by_problems = rest, 3 * problems.var(ddof=1) - rest  # the residual stands for the seeds, as it is larger
    error = np.sqrt((by_seeds + by_problems) / 12)
    freedom = (by_seeds + by_problems) ** 2 / (by_seeds**2 / 2 + by_problems**2 / 3)
    wide, narrow, p = crossed_test(values)
    assert p == pytest.approx(2 * stats.t.cdf(-1 / error, freedom))
    for found, level in ((wide, 0.95), (narrow, 0.9)):
        assert found == pytest.approx((1.0, *stats.t.interval(level, freedom, 1.0, error)))


def test_the_crossed_test_is_the_t_test_over_seeds_or_over_problems_where_the_others_add_nothing():
    random = np.random.default_rng(8)
    of_seeds = random.normal(size=(4, 1)) + np.zeros((4, 30))
    wide, narrow, p = crossed_test(of_seeds)
    assert wide == pytest.approx(t_interval(of_seeds[:, 0], 0.95))
    assert narrow == pytest.approx(t_interval(of_seeds[:, 0], 0.9))
    assert p == pytest.approx(stats.ttest_1samp(of_seeds[:, 0], 0).pvalue)
    of_problems = random.normal(size=30) + np.zeros((2, 30))
    wide, _, p = crossed_test(of_problems)
    assert wide == pytest.approx(t_interval(of_problems[0], 0.95))
    assert p == pytest.approx(stats.ttest_1samp(of_problems[0], 0).pvalue)
    assert crossed_test(np.full((2, 3), 0.5)) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None)
    with pytest.raises(ValueError, match="two problems"):
        crossed_test(np.ones((3, 1)))


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_crossed_test_of_few_seeds_holds_the_truth_where_problems_err_more(seeds):
    """The truth is over all seeds and problems: both draw an effect of their own, and the problems' is the larger part of the error."""
    random, held, trials = np.random.default_rng(seeds), 0, 600
    for _ in range(trials):
        effects = 0.005 * random.normal(size=(seeds, 1)) + 0.1 * random.normal(size=100)
        wide, *_ = crossed_test(0.2 + effects + 0.1 * random.normal(size=(seeds, 100)))
        held += wide.low <= 0.2 <= wide.high
    assert held / trials > 0.93


CASES = {  # (estimate, 95% interval, corrected p, margin, 90% interval): verdict
    "far below": ((-12.0, (-20.0, -4.0), 0.01, 10.0, (-18.0, -6.0)), "less"),
    "far above": ((12.0, (4.0, 20.0), 0.01, 10.0, (6.0, 18.0)), "more"),
    "at the margin": ((-10.0, (-19.0, -1.0), 0.03, 10.0, (-17.0, -3.0)), "less"),
    "just within the margin": ((-9.99, (-19.0, -1.0), 0.03, 10.0, (-17.0, -3.0)), "undecided"),
    "below, but the corrected p is not": ((-12.0, (-23.0, -1.0), 0.05, 10.0, (-21.0, -3.0)), "undecided"),
    "below, but without a p": ((-12.0, (-20.0, -4.0), None, 10.0, (-18.0, -6.0)), "undecided"),
    "an interval that ends at 0": ((-12.0, (-24.0, 0.0), 0.01, 10.0, (-22.0, -2.0)), "undecided"),
    "small and certain": ((1.0, (-3.0, 5.0), 0.6, 10.0, (-2.0, 4.0)), "equivalent"),
    "not 0, and small": ((3.0, (1.0, 5.0), 0.01, 10.0, (1.4, 4.6)), "equivalent"),
    "the narrow interval ends at the margin": ((0.0, (-12.0, 12.0), 1.0, 10.0, (-10.0, 10.0)), "equivalent"),
    "the narrow interval passes it below": ((0.0, (-12.0, 12.0), 1.0, 10.0, (-10.01, 10.0)), "undecided"),
    "the narrow interval passes it above": ((0.0, (-12.0, 12.0), 1.0, 10.0, (-10.0, 10.01)), "undecided"),
    "at the margin without spread": ((-10.0, (-10.0, -10.0), 0.01, 10.0, (-10.0, -10.0)), "less"),
    "no margin, apart": ((-0.1, (-0.2, -0.01), 0.049, None, None), "less"),
    "no margin, above": ((0.1, (0.01, 0.2), 0.049, None, None), "more"),
    "no margin, however close": ((0.0, (-0.01, 0.01), 1.0, None, (-0.01, 0.01)), "undecided"),
    "no interval": ((-2.0, None, 0.01, None, None), "less"),
    "a margin, no narrow interval": ((0.0, (-0.01, 0.01), 1.0, 10.0, None), "undecided"),
}


@pytest.mark.parametrize(("given", "word"), CASES.values(), ids=CASES)
def test_the_verdict_at_each_border(given, word):
    assert verdict(*given) == word
    estimate, interval, p, margin, narrow = given
    turned = (-estimate, *((ends and (-ends[1], -ends[0])) for ends in (interval, narrow)))
    assert verdict(turned[0], turned[1], p, margin, turned[2]) == {"less": "more", "more": "less"}.get(word, word)
