"""Metrics against scikit-learn and scipy, against formulas in numpy, and by hand; undefined ones have a reason, never NaN."""

import json
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from ba_lora.data.glue import TASKS
from ba_lora.errors import UserError
from eval.classifiers.metrics import (
    OF_CLASSES,
    OF_NUMBERS,
    calibration_error,
    compute,
    draw_reliability,
    metric,
    reliability,
)

REFERENCES = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": sklearn.metrics.f1_score,
    "matthews": sklearn.metrics.matthews_corrcoef,
    "macro_f1": lambda labels, predicted: sklearn.metrics.f1_score(labels, predicted, average="macro"),
    "pearson": lambda labels, predicted: scipy.stats.pearsonr(labels, predicted)[0],
    "spearman": lambda labels, predicted: scipy.stats.spearmanr(labels, predicted)[0],
}


def random_case(task, count=400, seed=0):
    """(logits, labels, predictions) with some signal; targets are rounded, so that there are ties."""
    generator = np.random.default_rng(seed)
    if not task.labels:
        labels = generator.uniform(0, 5, count).round(1)
        logits = (labels + generator.normal(0, 2, count)).round(1)[:, None]
        return logits, labels.tolist(), logits[:, 0]
    labels = generator.integers(0, len(task.labels), count)
    logits = generator.normal(0, 1, (count, len(task.labels))) + 0.7 * np.eye(len(task.labels))[labels]
    return logits, labels.tolist(), logits.argmax(1)


# The formulas, from counts or moments


def by_formula(name, labels, predicted, classes):
    labels, predicted = np.asarray(labels, float), np.asarray(predicted, float)
    if name == "accuracy":
        return (labels == predicted).mean()
    if name in ("pearson", "spearman"):
        if name == "spearman":  # Pearson of the ranks; ties share their mean rank
            labels, predicted = (
                np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x]) for x in (labels, predicted)
            )
        left, right = labels - labels.mean(), predicted - predicted.mean()
        return (left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum())

    def f1_of(number):
        hit = ((labels == number) & (predicted == number)).sum()
        return 2 * hit / ((labels == number).sum() + (predicted == number).sum())

    if name == "f1":
        return f1_of(1)
    if name == "macro_f1":
        return np.mean([f1_of(number) for number in range(classes)])
    tp, tn = (((labels == number) & (predicted == number)).sum() for number in (1, 0))
    fp, fn = (((labels == number) & (predicted == 1 - number)).sum() for number in (0, 1))
    return (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_random_predictions_of_every_task_give_the_libraries_and_the_formulas_values(name, seed):
    task = TASKS[name]
    logits, labels, predicted = random_case(task, seed=seed)
    made = compute(task, logits, labels)
    names = [*task.metrics, *(["macro_f1"] if task.labels else [])]
    for which in names:
        assert made[which] == pytest.approx(REFERENCES[which](labels, predicted), abs=1e-12), which
        assert made[which] == pytest.approx(by_formula(which, labels, predicted, len(task.labels)), abs=1e-9), which
        assert metric(task, which, logits, labels) == made[which]
    if task.labels:
        reports = sklearn.metrics.classification_report(labels, predicted, output_dict=True)
        assert made["recall"] == {
            text: pytest.approx(reports[str(number)]["recall"]) for number, text in enumerate(task.labels)
        }
        assert made["ece"] == pytest.approx(ece_by_loop(logits, labels), abs=1e-12)
    assert made["n"] == 400 and "undefined" not in made
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def ece_by_loop(logits, labels, bins=15):
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    total = 0.0
    for number in range(bins):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(chances, labels, strict=True)
            if number / bins < row.max() <= (number + 1) / bins
        ]
        if inside:
            confidence, correct = np.array(inside, float).T
            total += len(inside) / len(labels) * abs(correct.mean() - confidence.mean())
    return total


def logits_of(*predicted, classes=2):
    return 4.0 * np.eye(classes)[list(predicted)]


def test_values_by_hand():
    """8 rows: 3 true positives, 1 false positive, 2 false negatives, 2 true negatives."""
    logits, labels = logits_of(1, 1, 1, 1, 0, 0, 0, 0), [1, 1, 1, 0, 1, 1, 0, 0]
    made = compute(TASKS["mrpc"], logits, labels)
    assert made["accuracy"] == 5 / 8
    assert made["f1"] == pytest.approx(6 / 9)  # 2·3 / (4 + 5)
    assert made["macro_f1"] == pytest.approx((6 / 9 + 4 / 7) / 2)
    assert made["recall"] == {"not_equivalent": pytest.approx(2 / 3), "equivalent": pytest.approx(3 / 5)}
    assert compute(TASKS["cola"], logits, labels)["matthews"] == pytest.approx((3 * 2 - 1 * 2) / np.sqrt(4 * 5 * 3 * 4))
    made = compute(TASKS["stsb"], [[1.0], [2.0], [4.0]], [0.0, 1.0, 5.0])
    assert made["pearson"] == pytest.approx(8 / np.sqrt(14 / 3 * 14))  # deviations (-4, -1, 5)/3 and (-2, -1, 3)
    assert made["spearman"] == 1.0


def test_the_calibration_error_by_hand():
    half = [[0.0, 0.0]]  # confidence 1/2, class 0: bin (7/15, 8/15]
    sure = [[np.log(9), 0.0]]  # confidence 9/10: bin (13/15, 14/15]
    logits, labels = np.array(half * 2 + sure * 2), [0, 0, 0, 1]
    assert calibration_error(logits, labels) == pytest.approx(0.5 * (1 - 0.5) + 0.5 * (0.9 - 0.5))
    table = reliability(logits, labels)
    assert len(table) == 15 and [line["n"] for line in table] == [0] * 7 + [2] + [0] * 5 + [2] + [0]
    assert table[7] == {"low": 7 / 15, "high": 8 / 15, "n": 2, "confidence": 0.5, "accuracy": 1.0}
    assert table[0]["accuracy"] is None and table[0]["confidence"] is None


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_and_one_is_in_the_last():
    assert [line["n"] for line in reliability([[0.0, 0.0]], [0], bins=2)] == [1, 0]  # 1/2 is in (0, 1/2]
    assert [line["n"] for line in reliability([[900.0, -900.0]], [0], bins=15)] == [0] * 14 + [1]


def test_large_logits_overflow_nothing():
    with np.errstate(all="raise", under="ignore"):
        made = compute(TASKS["sst2"], [[1e4, -1e4], [-1e4, 1e4]], [0, 0])
    assert made["accuracy"] == 0.5 and made["ece"] == pytest.approx(0.5)


def test_one_class_only_is_defined_for_every_metric_of_classes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = compute(TASKS["cola"], logits_of(1, 1, 1), [1, 1, 1])
        never = compute(TASKS["mrpc"], logits_of(0, 0, 0), [0, 0, 0])
        constant = compute(TASKS["cola"], logits_of(1, 1, 1, 1), [1, 0, 1, 0])
    assert made["matthews"] == 0.0 and made["macro_f1"] == 1.0
    assert made["recall"] == {"unacceptable": None, "acceptable": 1.0}
    assert never["accuracy"] == 1.0 and never["f1"] == 0.0  # without any positives
    assert constant["matthews"] == 0.0 and constant["recall"] == {"unacceptable": 0.0, "acceptable": 1.0}


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        ([[2.0], [2.0], [2.0]], [0.0, 1.0, 5.0], "the predictions are all equal"),
        ([[0.0], [1.0], [2.0]], [3.0, 3.0, 3.0], "the targets are all equal"),
        ([[1.0]], [1.0], "fewer than two examples"),
    ],
)
def test_an_undefined_correlation_is_none_with_its_reason(logits, labels, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = compute(TASKS["stsb"], logits, labels)
    assert made["pearson"] is None and made["spearman"] is None
    assert made["undefined"] == {"pearson": reason, "spearman": reason}
    assert metric(TASKS["stsb"], "pearson", logits, labels) is None
    json.dumps(made, allow_nan=False)


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("sst2", "pearson", "metric pearson does not fit sst2, which has 2 classes; take one of: accuracy, f1"),
        (
            "stsb",
            "accuracy",
            "metric accuracy does not fit stsb, which is a regression; take one of: pearson, spearman",
        ),
        ("mnli", "f1", "metric f1 does not fit mnli, which has 3 classes; take one of: accuracy, macro_f1, matthews"),
        ("cola", "mathews", "metric 'mathews' is not known, did you mean 'matthews'"),
    ],
)
def test_a_metric_that_does_not_fit_the_task_is_refused(task, name, message):
    with pytest.raises(UserError, match=message):
        metric(TASKS[task], name, *random_case(TASKS[task])[:2])


def test_every_metric_of_a_task_fits_it():
    for task in TASKS.values():
        assert set(task.metrics) <= set(OF_CLASSES if task.labels else OF_NUMBERS)
        assert "f1" not in task.metrics or len(task.labels) == 2


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((3, 3)), [0, 1, 0], r"logits of shape \(3, 3\) and 3 labels do not fit cola: \(N, 2\) and N are needed"),
        (np.zeros((3, 2)), [0, 1], r"shape \(3, 2\) and 2 labels"),
        (np.zeros((0, 2)), [], "do not fit cola"),
        ([[0.0, 1.0], [np.nan, 0.0]], [0, 1], "the logits of row 1 are not finite"),
        ([[0.0, 1.0], [1.0, 0.0]], [0, 2], "the label 2 of row 1 is not one of cola's classes 0 to 1"),
        ([[0.0, 1.0], [1.0, 0.0]], [None, 1], "the label None of row 0 is not one of"),
        ([[0.0, 1.0], [1.0, 0.0]], [0, 0.5], "the label 0.5 of row 1"),
        ([[0.0, 1.0], [1.0, 0.0]], [0, "acceptable"], "is not one of cola's classes"),
    ],
)  # fmt: skip
def test_logits_and_labels_that_do_not_fit_are_named(logits, labels, message):
    with pytest.raises(UserError, match=message):
        compute(TASKS["cola"], logits, labels)


def test_a_target_that_is_no_number_is_named():
    with pytest.raises(UserError, match="the label nan of row 1 is not a number"):
        compute(TASKS["stsb"], [[0.0], [1.0]], [1.0, float("nan")])


def test_the_reliability_diagram_is_a_png(tmp_path):
    logits, labels, _ = random_case(TASKS["mnli"])
    draw_reliability(logits, labels, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["reliability.png"]
