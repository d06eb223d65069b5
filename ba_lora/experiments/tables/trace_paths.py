"""The price of keeping: methods against the path W0 + α·ΔW of another at equal task loss, and paths against each other at one loss."""

from collections.abc import Sequence

from .formats import EMPTY
from .parts import Part
from .trace_records import BASE, AtLoss, at_loss, estimate_of, estimate_text, off_path, path, with_shared_seeds

OFF = ("class", "method", "T − T of the path, points", "pairs", "pairs that miss the path")
AT = ("class", "path of", "T, points", "T − T of the path of {reference}, points", "pairs", "pairs that miss the loss")
OFF_NOTE = (
    "T of a method minus T of {reference}'s path at the method's own task loss, with the 95 % t-interval over pairs. Below 0: it keeps less than a "
    "shorter step of {reference} that is as good at the new task. Read between measured points only; a pair whose loss is not on "
    "the path misses it and is counted. Only fine-tuning seeds that both have are compared, here and below."
)
AT_NOTE = (
    "T of the paths at a task loss of {loss:g} nats, which was fixed before, and differences within pairs that reach it on both paths, "
    "with 95 % t-intervals over pairs."
)


def path_parts(records: Sequence[dict], reference: str, loss: float | None = None) -> list[Part]:
    """Return both tables for the classes as a whole; [] if `reference` has no path. loss: in nats; None leaves the second out."""
    classes = list(dict.fromkeys(record["class"] for record in records if record["dose"] is None))
    methods = dict.fromkeys(record["method"] for record in records if record["path"] is None)
    pathed = [method for method in methods if method != BASE and any(path(records, method, name) for name in classes)]
    if reference not in pathed:
        return []
    others = [method for method in methods if method not in (BASE, reference)]
    off = [
        _line(name, method, off_path(records, method, reference, name), "{:+.1f}")
        for name in classes
        for method in others
    ]
    parts = [Part("Paths", OFF, [line for line in off if line], 2, [OFF_NOTE.format(reference=reference)])]
    if loss is not None:
        at = [_line_at(records, name, method, reference, loss) for name in classes for method in pathed]
        titles = [title.format(reference=reference) for title in AT]
        parts.append(Part("", titles, [line for line in at if line], 2, [AT_NOTE.format(loss=loss)]))
    return parts


def _line_at(records: Sequence[dict], name: str, method: str, reference: str, loss: float) -> list[str] | None:
    """Return a row of the second table, or None where the method has no path."""
    made = at_loss(records, method, name, loss)
    line = _line(name, method, made)
    if line is None:
        return None
    shared = with_shared_seeds(records, method, reference)
    ours, there = (at_loss(shared, each, name, loss).values for each in (method, reference))
    values = {pair: value - there[pair] for pair, value in ours.items() if pair in there}
    return [*line[:3], EMPTY if method == reference else estimate_text(estimate_of(values), "{:+.1f}"), *line[3:]]


def _line(name: str, method: str, made: AtLoss, number: str = "{:.1f}") -> list[str] | None:
    """Return a row, or None where nothing could be compared."""
    if not made.values and not made.missed:
        return None
    return [name, method, estimate_text(estimate_of(made.values), number), str(len(made.values)), str(made.missed)]
