"""The figures of an experiment with twins: traces over the dose, by class and method, and against the task loss.

Each is made of records as in tables/trace_records.py. A method that lacks some of the pairs is not drawn: its mean would be over
other pairs. An error is half of the 95% t-interval over pairs, and no error is drawn for one pair.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ...canvas import BEFORE, FORMATS, Bars, Estimate, Lines, Section, make_figure, save, style
from ..tables.trace_records import BASE, interval_of, path, per_pair

TRACE = "trace T, points"
ERRORS = (
    "error bars: 95% t-intervals over pairs of twins; seeds are averaged first. Methods that lack pairs are not drawn."
)
SEEDS = "A mean is over the seeds that a method has; the table of differences compares two methods within the seeds of both."
LOSSES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5)  # ticks of the task loss
PATHS = (
    "Lines through points: W0 + α·ΔW, from the base (α = 0, right) to the tuned model (α = 1). Lower is less of what was "
    "planted, further left is better at the new task; a point on a line could be had by a shorter step of that method."
)


def draw(
    records: Sequence[dict], output: str | Path, formats: Iterable[str] = FORMATS, *, over_dose: Collection[str] = ()
) -> list[Path]:
    """Draw every figure that the records support into the folder `output`; return the files.

    over_dose: the methods that are drawn over the dose; all without it.
    """
    files = []
    with style():
        for name, section in compose(records, over_dose):
            files += save(make_figure([section]), Path(output) / name, formats)
    return files


def compose(records: Sequence[dict], over_dose: Collection[str] = ()) -> Iterator[tuple[str, Section]]:
    """Yield (file name, section) of each figure; one without data is left out."""
    records = _of_every_pair(records)
    methods = list(dict.fromkeys([BASE, *(record["method"] for record in records if record["path"] is None)]))
    classes = list(dict.fromkeys(record["class"] for record in records if record["dose"] is None))
    dosed = [name for name in methods if not over_dose or name in (BASE, *over_dose)]
    sections = {
        "dose_response": _dose_response(records, dosed),
        "traces": _traces(records, methods, classes),
        "paths": _paths(records, methods, classes),
    }
    yield from ((name, section) for name, section in sections.items() if section)


def _of_every_pair(records: Sequence[dict]) -> list[dict]:
    """Return the records of the methods that were run on every pair of their class."""
    pairs = defaultdict(set)
    for record in records:
        for method in (None, record["method"]):
            pairs[record["class"], record["dose"], method].add(record["pair"])
    return [
        record
        for record in records
        if pairs[record["class"], record["dose"], record["method"]] == pairs[record["class"], record["dose"], None]
    ]


def _dose_response(records: Sequence[dict], methods: list[str]) -> Section | None:
    """Return T over the dose, one panel per class and one line per method; the base is the line before fine-tuning."""
    panels = []
    for name in dict.fromkeys(record["class"] for record in records if record["dose"] is not None):
        doses = sorted({record["dose"] for record in records if record["class"] == name} - {None})
        lines = {}
        for method in methods:
            made = [(dose, _estimate(per_pair(records, method, name, dose))) for dose in doses]
            lines[BEFORE if method == BASE else method] = [(dose, estimate) for dose, estimate in made if estimate]
        lines = {method: points for method, points in lines.items() if points}
        ticks = {dose: f"{dose:g}" for dose in doses}
        panels.append(Lines("dose", TRACE, lines, title=name, ticks=ticks))
    caption = f"Dose: the share of statements with what was planted; {ERRORS}"
    return _section("Planted content over its dose, before and after fine-tuning", caption, panels)


def _traces(records: Sequence[dict], methods: list[str], classes: list[str]) -> Section | None:
    """Return T of each class by method, as bars."""
    panels = []
    for name in classes:
        made = [(method, _estimate(per_pair(records, method, name))) for method in methods]
        panels.append(Bars(f"{name}:\n{TRACE}", [(method, estimate) for method, estimate in made if estimate]))
    caption = f"{ERRORS[0].upper()}{ERRORS[1:]} {SEEDS} An axis marked // is cut: lengths of bars do not compare there."
    return Section("Planted content that is left, by class and method", caption, panels) if panels else None


def _paths(records: Sequence[dict], methods: list[str], classes: list[str]) -> Section | None:
    """Return T against the task loss: the paths of the methods that have one, and a point for each of the others."""
    panels = []
    for name in classes:
        lines = {}
        for method in methods[1:]:  # the base is where the paths begin
            points = path(records, method, name).values()
            alone = [per_pair(records, method, name, key=key) for key in ("task_loss", "trace")]
            if points:
                alphas = sorted({alpha for each in points for alpha, *_ in each})
                found = [[point for each in points for point in each if point[0] == alpha] for alpha in alphas]
                made = [(float(np.mean([x for _, x, _ in at])), _of([y for *_, y in at])) for at in found]
                lines[method] = [*((x, each._replace(error=None)) for x, each in made[:-1]), made[-1]]
            elif alone[1]:
                lines[method] = [(float(np.mean(list(alone[0].values()))), _estimate(alone[1]))]
        losses = [loss for points in lines.values() for loss, _ in points]
        ticks = {loss: f"{loss:g}" for loss in LOSSES if losses and min(losses) <= loss <= max(losses)}
        scale = {"value": "log"}
        panels.append(Lines("task loss, nats per token", TRACE, lines, title=name, x_scale=scale, ticks=ticks))
    caption = f"{PATHS} Mean over pairs; {ERRORS.replace('error bars', 'error bars of the tuned models')} {SEEDS}"
    has_path = any(record["path"] is not None for record in records)
    return _section("Planted content against the loss on the new task", caption, panels) if has_path else None


def _section(heading: str, caption: str, panels: Sequence[Lines]) -> Section | None:
    names = {name: name for panel in panels for name in panel.lines}
    return Section(heading, caption, panels, names) if panels else None


def _of(values: Sequence[float]) -> Estimate:
    return _estimate(dict(enumerate(values)))


def _estimate(values: dict[int, float]) -> Estimate | None:
    """Return the mean of {pair: T} with half of its interval, or None without a pair."""
    if not values:
        return None
    interval = interval_of(values)
    mean = float(np.mean(list(values.values())))
    error = None if interval is None else interval.high - interval.mean
    text = f"{mean:.1f}" + ("" if error is None else f" ± {error:.1f}")
    return Estimate(mean, error, text=text)
