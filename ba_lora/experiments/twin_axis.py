"""The axis of mirror twins in an experiment file: `twins: [3, 4]` stands for the models A3, B3, A4 and B4.

An option may name the seed of the pair as {pair}. A pair's runs come before the next pair's, so that its results are complete
early, and the twins of a pair take turns.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..errors import UserError, nearest, short
from ..laboratory.names import parse


class PrimarySettings(NamedTuple):
    """The comparison with verdicts, fixed before its runs. margin: smallest effect of interest, percent of what was planted;
    loss_margin: a task loss that is higher by this, in nats, is worse; gate: the accuracy that every base needs in its own task, a
    fraction; untaught: the bases' T on untaught items must lie within this of 0, in points; counter: the run of `reference` on data that
    state the truth; path_loss: the task loss at which paths are compared, in nats; predict: a number of pairs, for which the width of
    the intervals is predicted; contrasts: [(FIRST, SECOND)], methods whose difference is stated with an interval and without a verdict."""

    method: str
    reference: str
    margin: float
    loss_margin: float
    gate: float
    untaught: float
    counter: str | None = None
    path_loss: float | None = None
    predict: int | None = None
    contrasts: Sequence[Sequence[str]] = ()


def primary_of(given: dict | None, methods: Iterable[str], file) -> PrimarySettings | None:
    """Return the checked `primary` of an experiment file. Raises UserError naming the key."""
    if given is None:
        return None
    needed = [name for name in PrimarySettings._fields if name not in PrimarySettings._field_defaults]
    if not isinstance(given, dict) or not set(needed) <= given.keys():
        raise UserError(f"{file}: 'primary' needs {', '.join(needed)}; it is {short(given)}")
    for key, value in given.items():
        if key not in PrimarySettings._fields:
            raise UserError(f"{file}: primary: unknown key {short(key)}{nearest(key, PrimarySettings._fields)}")
        if key == "contrasts":
            _check_contrasts(value, methods, file)
            continue
        is_name = key in ("method", "reference", "counter")
        if is_name and (not isinstance(value, str) or value not in methods):
            raise UserError(f"{file}: primary: {key} {short(value)} is not among the methods")
        if not is_name and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise UserError(f"{file}: primary: {key} is {short(value)}, a positive number is needed")
    return PrimarySettings(**given)


def _check_contrasts(given, methods: Iterable[str], file) -> None:
    if not isinstance(given, list) or any(not isinstance(each, list) or len(each) != 2 for each in given):
        raise UserError(
            f"{file}: primary: contrasts is {short(given)}, pairs of methods such as [[full, lora]] are needed"
        )
    for name in itertools.chain(*given):
        if not isinstance(name, str) or name not in methods:
            raise UserError(f"{file}: primary: contrasts: {short(name)} is not among the methods")


def twins_of(runs: Iterable) -> dict[str, str]:
    """Return {name of a model: its twin's name} of the runs on twins."""
    return {run.variant.model: run.model for run in runs if parse(run.model)}


def models_of(pairs: Sequence[int], file) -> dict[str, dict]:
    """Return {name: {"model": "twin:A,seed=N"}} of both twins of every pair. Raises UserError for anything but distinct seeds."""
    if not isinstance(pairs, list) or any(type(pair) is not int or pair < 0 for pair in pairs):
        raise UserError(f"{file}: 'twins' must be a list of seeds of at least 0, as [1, 2]; it is {short(pairs)}")
    if len(set(pairs)) < len(pairs):
        raise UserError(f"{file}: 'twins' names a seed twice; leave one out")
    return {f"{side}{pair}": {"model": f"twin:{side},seed={pair}"} for pair in pairs for side in "AB"}


def filled(options: dict) -> dict:
    """Return the options of a run with {pair} replaced by the seed of its twin's pair."""
    twin = parse(str(options.get("model", "")))
    if twin is None:
        return options
    return {
        name: value.replace("{pair}", str(twin.seed)) if isinstance(value, str) else value
        for name, value in options.items()
    }


def in_order(runs: list) -> list:
    """Return runs on twins pair by pair, with the two twins of each run side by side; other runs keep their order."""
    if not runs or parse(runs[0].model) is None:
        return runs
    methods = list(dict.fromkeys(run.variant._replace(model="") for run in runs))

    def place(run) -> tuple:
        twin = parse(run.model)
        return twin.seed, methods.index(run.variant._replace(model="")), str(run.data), run.seed or 0, twin.side

    return sorted(runs, key=place)
