"""The traces of an experiment with twins as a plain list, and what is compared in it: values per pair, verdicts, paths.

A record is {"pair": seed of the pair, "method": name, "seed": of the fine-tuning or None, "class": name, "dose": number or None for
all doses of the class, "trace": T in points, "task_loss": nats, mean of the twins, "path": α or None}. The unchanged twins are the
method "base". A record with an α is a point of W0 + α·ΔW of its method; the base is α = 0 and the record without one α = 1.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eval.harness.statistics import Interval, t_interval

from ..twin_axis import PrimarySettings
from .formats import EMPTY
from .planted import Primary, interpolated, primary, relative_difference

BASE = "base"
PLANTED = 10.0  # points of the bases' mean T below which nothing worth a percentage was planted


class AtLoss(NamedTuple):
    """A comparison at equal task loss. values: pair → number; missed: pairs whose path does not reach the loss."""

    values: dict[int, float]
    missed: int


def interval_of(values: Mapping[int, float]) -> Interval | None:
    """Return the 95% t-interval of {pair: number}, or None for fewer than two pairs."""
    return t_interval(list(values.values())) if len(values) > 1 else None


def estimate_of(values: Mapping[int, float]) -> Interval | float | None:
    """Return the interval of {pair: number}, the number itself of one pair, or None without pairs."""
    return interval_of(values) or next(iter(values.values()), None)


def estimate_text(value: Interval | float | None, number: str) -> str:
    """Return a mean with its interval in brackets, as far as there are any. number: a format of one number, as "{:.1f}"."""
    if value is None:
        return EMPTY
    if not isinstance(value, Interval):
        return number.format(value)
    mean, low, high = map(number.format, value)
    return f"{mean} [{low}, {high}]"


def per_pair(
    records: Iterable[dict], method: str, name: str, dose: float | None = None, key: str = "trace"
) -> dict[int, float]:
    """Return {pair: mean of `key` over the fine-tuning seeds} of one method and class, in the order of the pairs."""
    return _over_seeds(_per_run(records, method, name, dose, key))


def _per_run(records: Iterable[dict], method: str, name: str, dose: float | None, key: str) -> dict[tuple, float]:
    """Return {(pair, seed): `key`}."""
    return {
        (record["pair"], record["seed"]): record[key]
        for record in records
        if (record["method"], record["class"], record["dose"], record["path"]) == (method, name, dose, None)
    }


def _over_seeds(of_run: Mapping[tuple, float]) -> dict[int, float]:
    found = defaultdict(list)
    for (pair, _), value in of_run.items():
        found[pair].append(value)
    return {pair: float(np.mean(found[pair])) for pair in sorted(found)}


def differences(
    records: Sequence[dict], ours: str, reference: str, name: str, dose: float | None = None, key: str = "trace"
) -> dict[int, float]:
    """Return {pair: `key` of ours minus that of the reference}, the mean over the fine-tuning seeds that both have."""
    first, second = (_per_run(records, method, name, dose, key) for method in (ours, reference))
    return _over_seeds({run: value - second[run] for run, value in first.items() if run in second})


def relative_differences(
    records: Sequence[dict], ours: str, reference: str, name: str, dose: float | None = None
) -> dict[int, float]:
    """Return {pair: D} over the pairs that have both methods and the base; {} without one, and if the bases' mean T is below PLANTED."""
    made, base = differences(records, ours, reference, name, dose), per_pair(records, BASE, name, dose)
    shared = sorted(set(made) & set(base))
    if not shared or np.mean([base[pair] for pair in shared]) < PLANTED:
        return {}
    found = relative_difference([made[pair] for pair in shared], [base[pair] for pair in shared])
    return dict(zip(shared, found.tolist(), strict=True))


def verdicts(records: Sequence[dict], settings: PrimarySettings, counterparts: Mapping[str, str]) -> list[Primary]:
    """Return the verdict on each class of `counterparts`, class → its harmless counterpart; [] for fewer than two pairs, and if
    the bases have a mean T below PLANTED in any of them.

    A pair counts if it has both methods and the base in every class, and each pair counts in all of them.
    """
    ours, reference = settings.method, settings.reference
    names = [*counterparts, *counterparts.values()]
    sides = [differences(records, ours, reference, name) for name in names]
    shared = set.intersection(*map(set, sides), *(set(per_pair(records, BASE, name)) for name in names))
    whole = [record for record in records if record["pair"] in shared]
    made = {name: list(relative_differences(whole, ours, reference, name).values()) for name in names}
    if len(shared) < 2 or not all(made.values()):
        return []
    return primary(
        {name: made[name] for name in counterparts},
        {name: made[other] for name, other in counterparts.items()},
        list(differences(whole, ours, reference, names[0], key="task_loss").values()),
        settings.margin,
        settings.loss_margin,
    )


def with_shared_seeds(records: Iterable[dict], first: str, second: str) -> list[dict]:
    """Return the base's records and, of two methods, those of the pairs and fine-tuning seeds that both have.

    A method with one seed is thus compared with the same seed of a method that has two.
    """
    records, runs = list(records), {first: set(), second: set()}
    for record in records:
        if record["method"] in runs:
            runs[record["method"]].add((record["pair"], record["seed"]))
    shared = runs[first] & runs[second]
    return [
        record
        for record in records
        if record["method"] == BASE or (record["method"] in runs and (record["pair"], record["seed"]) in shared)
    ]


def path(records: Sequence[dict], method: str, name: str, dose: float | None = None) -> dict[int, list[tuple]]:
    """Return {pair: [(α, task loss, trace)]} from the base to the tuned model, means over the seeds of fine-tuning.

    Only for pairs with points between the two; {} for a method without a path.
    """
    points = defaultdict(lambda: defaultdict(list))
    for record in records:
        if (record["class"], record["dose"]) != (name, dose) or record["method"] not in (method, BASE):
            continue
        alpha = 0.0 if record["method"] == BASE else 1.0 if record["path"] is None else float(record["path"])
        points[record["pair"]][alpha].append((record["task_loss"], record["trace"]))
    return {
        pair: [(alpha, *np.mean(found[alpha], axis=0).tolist()) for alpha in sorted(found)]
        for pair, found in sorted(points.items())
        if {0.0, 1.0} < set(found)
    }


def at_loss(records: Sequence[dict], method: str, name: str, loss: float, dose: float | None = None) -> AtLoss:
    """Return the traces of a method's paths at one task loss, by interpolation only."""
    found = {pair: _read(points, loss) for pair, points in path(records, method, name, dose).items()}
    return _reached(found)


def off_path(records: Sequence[dict], ours: str, other: str, name: str, dose: float | None = None) -> AtLoss:
    """Return T of `ours` minus T of the path of `other` at the task loss of `ours`, per pair, points; with the seeds that both have.

    Below 0: `ours` keeps less of the class than a shorter step of `other` that solves the task equally well.
    """
    records = with_shared_seeds(records, ours, other)
    traces, losses = (per_pair(records, ours, name, dose, key) for key in ("trace", "task_loss"))
    found = {}
    for pair, points in path(records, other, name, dose).items():
        if pair in traces:
            there = _read(points, losses[pair])
            found[pair] = None if there is None else traces[pair] - there
    return _reached(found)


def _read(points: Sequence[tuple], loss: float) -> float | None:
    _, losses, traces = zip(*points, strict=True)
    return interpolated(losses, traces, loss)


def _reached(found: dict[int, float | None]) -> AtLoss:
    values = {pair: value for pair, value in found.items() if value is not None}
    return AtLoss(values, len(found) - len(values))
