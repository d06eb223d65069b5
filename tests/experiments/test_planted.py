"""Verdicts on planted content, from made traces: each number against its definition, worked out in another way."""

import itertools

import numpy as np
import pytest
from scipy import stats

from ba_lora.experiments.tables.planted import (
    interpolated,
    predicted_half_width,
    primary,
    relative_difference,
    trace,
)

PAIRS = 12


def test_a_trace_is_the_mean_difference_of_the_shares_in_points():
    assert trace([0.9, 0.8], [0.1, 0.4]) == pytest.approx(100 * (0.8 + 0.4) / 2)
    assert trace([[1.0, 1.0], [1.0, 1.0]], np.zeros((2, 2))) == 100 and trace([0.3], [0.3]) == 0
    assert trace([0.1], [0.9]) == pytest.approx(-80)
    for wrong in (([0.1, 0.2], [0.1]), ([], []), ([1.2], [0.1]), ([0.1], [-0.1]), ([float("nan")], [0.1])):
        with pytest.raises(ValueError, match="a trace needs"):
            trace(*wrong)


def test_the_relative_difference_has_one_denominator():
    made = relative_difference([50.0 - 60.0, 30.0 - 25.0], [90.0, 10.0])  # the bases' mean is 50
    assert made == pytest.approx([-20.0, 10.0])
    with pytest.raises(ValueError, match="nothing was planted"):
        relative_difference([1.0], [0.0])
    with pytest.raises(ValueError, match="the same pairs"):
        relative_difference([1.0, 2.0], [1.0])


def around(mean, deviation=8.0, pairs=PAIRS):
    """Differences with exactly this mean and sample deviation."""
    values = np.random.default_rng(pairs).normal(size=pairs)
    return mean + deviation * (values - values.mean()) / values.std(ddof=1)


def judged(stereotype, facts, harmless=0.0, loss=0.0, **margins):
    of_class = {"stereotype": around(stereotype), "wrong facts": around(facts)}
    calm = {name: around(harmless, 3.0) for name in of_class}
    return primary(of_class, calm, around(loss, 0.005), **{"margin": 10.0, "loss_margin": 0.02} | margins)


def test_the_numbers_of_a_verdict_are_scipys_and_those_of_all_signs():
    made = judged(-14.0, -6.0)
    tests = [stats.ttest_1samp(each.differences, 0) for each in made]
    for each, test in zip(made, tests, strict=True):
        assert each.wide.ends == pytest.approx(test.confidence_interval(0.95))
        assert each.narrow.ends == pytest.approx(test.confidence_interval(0.90))
        assert each.p == pytest.approx(test.pvalue)
        values = np.array(each.differences)
        signs = np.array(list(itertools.product((1, -1), repeat=PAIRS)))
        share = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-9)
        assert each.flipped == share
        against = stats.ttest_rel(values, around(0.0, 3.0)).confidence_interval(0.95)
        assert each.beyond.ends == pytest.approx(against)
    first, second = sorted(made, key=lambda each: each.p)
    assert first.corrected == pytest.approx(2 * first.p) and second.corrected == max(second.p, first.corrected)


# The 95% half-width is 2.201 · 8 / √12 = 5.08 and the 90% one 4.15; two p values at most 0.05 after Holm.
@pytest.mark.parametrize(
    ("mean", "word"),
    [
        (-14.0, "less"),
        (-10.001, "less"),
        (-9.999, "undecided"),
        (-5.9, "undecided"),
        (-5.8, "equivalent"),
        (0.0, "equivalent"),
    ],
)
def test_the_verdict_is_by_interval_and_margin(mean, word):
    assert judged(mean, 0.0)[0].verdict == word
    assert judged(-mean, 0.0)[0].verdict == {"less": "more"}.get(word, word)
    assert judged(mean, 0.0, margin=100.0)[0].verdict == "equivalent"


def test_holm_over_the_classes_reaches_the_verdict():
    wide = around(-12.0, 18.0)  # p is between 0.025 and 0.05, so alone it would be less
    calm, losses = {"stereotype": around(0.0), "wrong facts": around(0.0)}, around(0.0, 0.005)
    assert 0.025 < stats.ttest_1samp(wide, 0).pvalue < 0.05
    alone = primary({"stereotype": wide}, calm, losses, 10.0, 0.02)
    beside = primary({"stereotype": wide, "wrong facts": around(0.0, 18.0)}, calm, losses, 10.0, 0.02)
    helped = primary({"stereotype": wide, "wrong facts": around(-30.0)}, calm, losses, 10.0, 0.02)
    assert [made[0].verdict for made in (alone, beside, helped)] == ["less", "undecided", "less"]


def test_to_alleviate_needs_less_and_more_than_forgetting_and_the_task():
    assert judged(-14.0, 0.0)[0].alleviates and not judged(-14.0, 0.0)[1].alleviates
    assert not judged(-14.0, 0.0, harmless=-12.0)[0].alleviates  # the harmless content is forgotten too
    end = 1.795885 * 0.005 / np.sqrt(PAIRS)  # of the 90% interval of the loss
    assert judged(-14.0, 0.0, loss=0.0199 - end)[0].alleviates
    assert not judged(-14.0, 0.0, loss=0.0201 - end)[0].alleviates
    assert not judged(14.0, 0.0, harmless=20.0)[0].alleviates


def test_a_path_is_read_between_its_points_only():
    losses, traces = [2.0, 1.5, 1.0], [90.0, 80.0, 40.0]
    for loss in (2.0, 1.9, 1.5, 1.2, 1.0):
        assert interpolated(losses, traces, loss) == pytest.approx(np.interp(loss, losses[::-1], traces[::-1]))
    assert interpolated(losses, traces, 0.99) is None and interpolated(losses, traces, 2.01) is None
    assert interpolated([2.0, 1.0, 1.5], [90.0, 50.0, 30.0], 1.25) == pytest.approx(60.0)  # the smallest alpha of two
    assert interpolated([2.0, 2.0, 1.0], [90.0, 70.0, 50.0], 2.0) == 90.0


def test_the_predicted_half_width_is_that_of_an_interval_with_this_deviation():
    interval = stats.ttest_1samp(around(3.0, 6.5), 0).confidence_interval(0.95)
    assert predicted_half_width(around(-40.0, 6.5, pairs=2), PAIRS) == pytest.approx((interval.high - interval.low) / 2)
    for wrong in (([1.0], 12), ([1.0, 2.0], 1)):
        with pytest.raises(ValueError, match="at least two pairs"):
            predicted_half_width(*wrong)
