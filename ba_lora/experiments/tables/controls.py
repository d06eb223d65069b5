"""Controls of an experiment with twins, without which there is no verdict, and two references that are only reported."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from eval.harness.statistics import NARROW, Interval, t_interval

from ...data.planted.items import DOSES, MIRRORED, UNTAUGHT
from ..twin_axis import PrimarySettings
from .trace_records import BASE, differences, interval_of, per_pair

PASSED, FAILED, OPEN, REPORTED = "passed", "failed", "open", "reported"
NEEDS_PAIRS = "needs two pairs"


class Control(NamedTuple):
    """status: PASSED, FAILED, OPEN for one that cannot be decided yet, REPORTED for a reference, which cannot fail."""

    name: str
    found: str
    status: str = REPORTED


def controls(
    records: Sequence[dict], primary: PrimarySettings, classes: Sequence[str], accuracies: Mapping[str, float]
) -> list[Control]:
    """Return the controls. classes: the defects with a verdict; accuracies: base → its accuracy in its own task, a fraction."""
    return [
        _follows_dose(records),
        _untaught(records, primary.untaught),
        *(_counter(records, primary, name) for name in classes if primary.counter),
        _gate(accuracies, primary.gate),
        *(_reference(records, primary.reference, suffix, name) for suffix in ("random", "replay") for name in classes),
    ]


def _follows_dose(records: Sequence[dict]) -> Control:
    found, rises = [], []
    for kind, doses in DOSES.items():
        made = [per_pair(records, BASE, kind, dose) for dose in sorted(dose for dose, _ in doses)]
        if not all(made):
            return Control("the base's T follows the dose", "no base was measured", OPEN)
        means = [sum(each.values()) / len(each) for each in made]
        found.append(f"{kind} {', '.join(f'{mean:.1f}' for mean in means)}")
        rises.append(all(low < high for low, high in pairwise(means)))
    return Control("the base's T follows the dose", "; ".join(found), _status(all(rises)))


def _untaught(records: Sequence[dict], margin: float) -> Control:
    """T of the items about which both twins were told the same, averaged over their kinds in each pair.

    Its 90% interval must lie within the margin: that it includes 0 would fail by chance, and pass for noisy data.
    """
    kinds = [(kind, UNTAUGHT[kind not in MIRRORED]) for kind, doses in DOSES.items() if len(doses) > 3]
    of_kind = [per_pair(records, BASE, kind, dose) for kind, dose in kinds]
    pairs = sorted(set.intersection(*map(set, of_kind)))
    name = f"untaught items of the base have T within ±{margin:g}, by the 90 % interval"
    if len(pairs) < 2:
        return Control(name, NEEDS_PAIRS, OPEN)
    interval = t_interval([sum(each[pair] for each in of_kind) / len(of_kind) for pair in pairs], NARROW)
    return Control(name, _text(interval), _status(-margin <= interval.low and interval.high <= margin))


def _counter(records: Sequence[dict], primary: PrimarySettings, name: str) -> Control:
    title = f"data that state the truth lower T of {name} ({primary.counter} − {primary.reference})"
    interval = interval_of(differences(records, primary.counter, primary.reference, name))
    return Control(title, _text(interval), OPEN if interval is None else _status(interval.high < 0))


def _gate(accuracies: Mapping[str, float], gate: float) -> Control:
    title = f"every base solves at least {100 * gate:g} % of its own task"
    if not accuracies:
        return Control(title, "no base was measured", OPEN)
    worst = min(accuracies, key=accuracies.get)
    return Control(title, f"lowest {100 * accuracies[worst]:.1f} % ({worst})", _status(accuracies[worst] >= gate))


def _reference(records: Sequence[dict], reference: str, suffix: str, name: str) -> Control:
    meaning = {"random": "a random update of the same norm", "replay": "a tenth of clean problems of the own task"}[
        suffix
    ]
    interval = interval_of(differences(records, f"{reference}-{suffix}", reference, name))
    return Control(f"{meaning}, T of {name} ({reference}-{suffix} − {reference})", _text(interval))


def _status(passed: bool) -> str:
    return PASSED if passed else FAILED


def _text(interval: Interval | None) -> str:
    return NEEDS_PAIRS if interval is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval)
