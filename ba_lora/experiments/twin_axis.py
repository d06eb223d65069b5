"""The axis of mirror twins in an experiment file: `twins: [3, 4]` stands for the models A3, B3, A4 and B4.

An option may name the seed of the pair as {pair}. A pair's runs come before the next pair's, so that its results are complete
early, and the twins of a pair take turns.
"""

from collections.abc import Sequence

from ..errors import UserError, short
from ..laboratory.names import parse


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
