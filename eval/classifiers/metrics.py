"""Metrics of classification and regression from logits and labels, by scikit-learn and scipy; also calibration.

An undefined metric is None, never NaN, with its reason under "undefined". Matthews is 0 if the labels or the predictions have
only one class, as in scikit-learn. F1 is for class 1, as in GLUE. The calibration error (ECE) compares the mean confidence with
the accuracy in 15 bins of equal width over the confidence, weighted by the bins' sizes (Guo et al., 2017).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, recall_score

from ba_lora.data.glue import Task
from ba_lora.errors import UserError, choose

BINS = 15


def _f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    return f1_score(labels, predicted, pos_label=1, average="binary", zero_division=0)


def _matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    if np.ptp(labels) == 0 or np.ptp(predicted) == 0:
        return 0.0  # as in scikit-learn, which warns
    return matthews_corrcoef(labels, predicted)


def _macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    return f1_score(labels, predicted, average="macro", zero_division=0)


OF_CLASSES: dict[str, Callable] = {
    "accuracy": accuracy_score,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
}
OF_NUMBERS: dict[str, Callable] = {"pearson": pearsonr, "spearman": spearmanr}


def compute(task: Task, logits, labels: Sequence) -> dict:
    """Return all metrics of `task`. logits: (N, classes), for a regression (N, 1); labels: N class numbers or targets.

    For classes also macro_f1 (over the classes in the labels or the predictions), recall {class: fraction found, None if the
    labels have no example of it} and ece; always n. An undefined metric is None, with its reason in "undefined"
    {metric: reason}, a key that exists only then. Raises UserError for logits and labels that do not fit the task.
    """
    logits, labels = _checked(task, logits, labels)
    names = [*task.metrics, "macro_f1"] if task.labels else list(task.metrics)
    undefined = {name: reason for name in names if (reason := _undefined(name, logits, labels))}
    made = {name: None if name in undefined else metric(task, name, logits, labels) for name in names}
    if task.labels:
        found = recall_score(labels, logits.argmax(1), labels=range(len(task.labels)), average=None, zero_division=0)
        there = set(labels.tolist())
        made["recall"] = {
            name: float(found[number]) if number in there else None for number, name in enumerate(task.labels)
        }
        made["ece"] = calibration_error(logits, labels)
    return made | {"n": len(labels)} | ({"undefined": undefined} if undefined else {})


def metric(task: Task, name: str, logits, labels: Sequence) -> float | None:
    """Return one metric, a key of OF_CLASSES or OF_NUMBERS; None if it is undefined.

    Raises UserError if the name is unknown or does not fit the task: a correlation of classes, an accuracy of numbers, F1 of
    three classes.
    """
    choose("metric", name, [*OF_CLASSES, *OF_NUMBERS])
    fitting = list(OF_CLASSES if task.labels else OF_NUMBERS)
    if task.labels and len(task.labels) != 2:
        fitting.remove("f1")
    if name not in fitting:
        kind = f"has {len(task.labels)} classes" if task.labels else "is a regression"
        raise UserError(f"metric {name} does not fit {task.name}, which {kind}; take one of: {', '.join(fitting)}")
    logits, labels = _checked(task, logits, labels)
    if _undefined(name, logits, labels):
        return None
    if task.labels:
        return float(OF_CLASSES[name](labels, logits.argmax(1)))
    return float(OF_NUMBERS[name](logits[:, 0], labels).statistic)


def _undefined(name: str, logits: np.ndarray, labels: np.ndarray) -> str | None:
    """Return why a correlation is undefined, or None if it is defined."""
    if name not in OF_NUMBERS:
        return None
    if len(labels) < 2:
        return "fewer than two examples"
    for what, values in (("predictions", logits[:, 0]), ("targets", labels)):
        if (values == values[0]).all():
            return f"the {what} are all equal"
    return None


def _checked(task: Task, logits, labels: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, D) and labels (N,) in float64, or class numbers. Raises UserError naming an invalid row."""
    logits, width = np.asarray(logits, dtype=np.float64), len(task.labels) or 1
    if logits.ndim != 2 or logits.shape[1] != width or len(logits) != len(labels) or not len(labels):
        raise UserError(
            f"logits of shape {logits.shape} and {len(labels)} labels do not fit {task.name}: (N, {width}) and N are needed"
        )
    bad = np.flatnonzero(~np.isfinite(logits).all(1))
    if len(bad):
        raise UserError(f"the logits of row {bad[0]} are not finite: {logits[bad[0]].tolist()}; the model is broken")
    try:
        numbers = np.asarray(labels, dtype=np.float64)  # None becomes NaN
    except (ValueError, TypeError):
        numbers = np.full(len(labels), np.nan)
    fits = np.isin(numbers, range(width)) if task.labels else np.isfinite(numbers)
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        wanted = f"one of {task.name}'s classes 0 to {width - 1}" if task.labels else "a number"
        raise UserError(f"the label {labels[row]!r} of row {row} is not {wanted}")
    return logits, numbers.astype(np.int64) if task.labels else numbers


def reliability(logits, labels: Sequence[int], bins: int = BINS) -> list[dict]:
    """Return the table of a reliability diagram: one line per bin (low, high] of the confidence, with its size, mean confidence
    and accuracy; the last two are None for an empty bin."""
    chances = softmax(np.asarray(logits, dtype=np.float64), axis=1)  # (N, D)
    confidence, correct = chances.max(1), chances.argmax(1) == np.asarray(labels)
    edges = np.linspace(0, 1, bins + 1)
    inside = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    table = []
    for number in range(bins):
        chosen = inside == number
        line = {"low": float(edges[number]), "high": float(edges[number + 1]), "n": int(chosen.sum())}
        line["confidence"] = float(confidence[chosen].mean()) if chosen.any() else None
        line["accuracy"] = float(correct[chosen].mean()) if chosen.any() else None
        table.append(line)
    return table


def calibration_error(logits, labels: Sequence[int], bins: int = BINS) -> float:
    """Return the ECE: Σ_bins n_b/N · |accuracy_b - confidence_b|."""
    table = [line for line in reliability(logits, labels, bins) if line["n"]]
    total = sum(line["n"] for line in table)
    return sum(line["n"] * abs(line["accuracy"] - line["confidence"]) for line in table) / total


def draw_reliability(logits, labels: Sequence[int], path: str | Path) -> None:
    """Write the reliability diagram as PNG: the accuracy of each bin beside the diagonal, and the number of examples per bin."""
    from matplotlib.figure import Figure

    table = reliability(logits, labels)
    middle, width = [(line["low"] + line["high"]) / 2 for line in table], 1 / len(table)
    figure = Figure(figsize=(4, 4.4), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    above.bar(middle, [line["accuracy"] or 0 for line in table], width, color="tab:blue", edgecolor="white")
    above.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"ECE {calibration_error(logits, labels):.3f}")
    below.bar(middle, [line["n"] for line in table], width, color="tab:grey", edgecolor="white")
    below.set(xlabel="confidence", ylabel="examples")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp.png")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)
