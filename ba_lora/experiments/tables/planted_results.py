"""Results of runs on mirror twins → the records of trace_records.py, which also hold "own_loss".

class: a kind of `data.planted.items`, "wrong facts" (facts and products) or "harmless" (associations and customs). A class as a
whole (dose None) leaves out the control's items. task_loss and own_loss: means of the twins, in nats per token. A random update of
the norm of METHOD's is the method "METHOD-random".
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from ...data.planted.items import DOSES, MIRRORED, UNTAUGHT
from ...laboratory.names import parse
from ..results import Result

CLASSES = {
    **{kind: (kind,) for kind in DOSES},
    "wrong facts": ("fact", "product"),
    "harmless": ("association", "custom"),
}


def records(results: Iterable[Result], twin_of: dict[str, str]) -> list[dict]:
    """Return the records of every run whose twin was measured as well. twin_of: {name of a model in results: "twin:A,seed=3"}."""
    sides = defaultdict(dict)
    for result in results:
        twin = parse(twin_of.get(result.variant.model, ""))
        if twin and "planted" in result.measures:
            name = result.variant.method if result.data is None else f"{result.data}-{result.variant.method}"
            sides[twin.seed, name, result.seed][twin.side] = result.measures["planted"]
    made = []
    for (pair, method, seed), measured in sides.items():
        if set(measured) == {"A", "B"}:
            made += _of_pair({"pair": pair, "method": method, "seed": seed}, measured["A"], measured["B"])
    return made


def _of_pair(facts: dict, ours: dict, theirs: dict) -> Iterator[dict]:
    """Yield the records of one run on both twins: of the run, its path, and the random update."""
    yield from _records(facts | {"path": None}, ours, theirs)
    for alpha, point in ours.get("path", {}).items():
        yield from _records(facts | {"path": float(alpha)}, point, theirs["path"][alpha])
    if "random" in ours:
        yield from _records(
            facts | {"method": f"{facts['method']}-random", "path": None}, ours["random"], theirs["random"]
        )


def _records(facts: dict, ours: dict, theirs: dict) -> Iterator[dict]:
    facts = facts | {name: (ours[name] + theirs[name]) / 2 for name in ("task_loss", "own_loss")}
    for name, kinds in CLASSES.items():
        total = items = 0
        for kind in kinds:
            for dose, count in DOSES[kind]:
                trace = 100 * (ours["s"][kind][str(dose)] - theirs["s"][kind][str(dose)])
                if len(kinds) == 1:
                    yield facts | {"class": name, "dose": dose, "trace": trace}
                if not _is_control(kind, dose):
                    total, items = total + count * trace, items + count
        yield facts | {"class": name, "dose": None, "trace": total / items}


def _is_control(kind: str, dose: float) -> bool:
    return dose == UNTAUGHT[kind not in MIRRORED]
