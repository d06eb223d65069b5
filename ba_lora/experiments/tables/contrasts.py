"""Differences between two methods of an experiment with twins that its file names: intervals, without a verdict."""

from collections.abc import Mapping, Sequence

from .formats import EMPTY
from .parts import Part
from .trace_records import differences, estimate_of, estimate_text, off_path, relative_differences

TITLES = (
    *("class", "difference", "pairs", "T, points", "D, %", "D − D of the harmless, %", "task loss, nats"),
    *("T at equal task loss, points", "pairs that miss it"),
)
NOTE = (
    "FIRST − SECOND within pairs and fine-tuning seeds, with 95 % t-intervals over the pairs that have both, not corrected for their number. D: in percent of the "
    "bases' mean T. At equal task loss: T of FIRST minus T of SECOND's path at the loss of FIRST, where the path was measured."
)


def contrast_parts(
    records: Sequence[dict], contrasts: Sequence[Sequence[str]], counterparts: Mapping[str, str]
) -> list[Part]:
    """Return the table of `contrasts`, [(FIRST, SECOND)], for each class of `counterparts`; [] if none has a pair with both methods."""
    lines = [
        _line(records, ours, other, name, harmless)
        for name, harmless in counterparts.items()
        for ours, other in contrasts
    ]
    lines = [line for line in lines if line]
    return [Part("Differences", TITLES, lines, 2, [NOTE])] if lines else []


def _line(records: Sequence[dict], ours: str, other: str, name: str, harmless: str) -> list[str] | None:
    made = differences(records, ours, other, name)
    if not made:
        return None
    share, beside = (relative_differences(records, ours, other, each) for each in (name, harmless))
    beyond = {pair: value - beside[pair] for pair, value in share.items() if pair in beside}
    loss = differences(records, ours, other, name, key="task_loss")
    level = off_path(records, ours, other, name)
    points = [estimate_text(estimate_of(values), "{:+.1f}") for values in (made, share, beyond, level.values)]
    nats = estimate_text(estimate_of(loss), "{:+.3f}")
    missed = str(level.missed) if level.values or level.missed else EMPTY
    return [name, f"{ours} − {other}", str(len(made)), *points[:3], nats, points[3], missed]
