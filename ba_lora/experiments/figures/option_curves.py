"""Scores over the values of a varied option, ours and the published ones over rank."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...canvas import ELSEWHERE, Estimate, Lines, Section
from ...objective.settings import REGULARIZERS
from ..paper.published import METHODS, Published
from .estimates import Quantity, about_seeds, estimate, quantities

if TYPE_CHECKING:  # they import torch, which figures do not need
    from ..matrix import Experiment
    from ..results import Result

ZERO_IS_ALL = ("top_k",)
WIDE = 8  # ratio of the largest to the smallest value from which the axis is logarithmic
LABELS = {
    "learning_rate": "learning rate",
    "effective_batch_size": "samples per optimiser step",
    "batch": "samples per optimiser step",
    "label_noise": "share of labels replaced",
    "temperature": "T",
    "svd_k": "k, singular values",
    "top_k": "K, classes of the diversity term",
    **{each.weight: f"{each.symbol} ({each.name})" for each in REGULARIZERS},
}


def section(experiment: "Experiment", results: Sequence["Result"], option: str, verdicts: str) -> Section:
    """Return every quantity over the option's values: one panel per quantity and model, one line per method. verdicts: a sentence for
    the caption."""
    some = _of_option(results, option)
    panels = _panels(experiment, some, option, quantities(some))
    return _section(experiment.title, some, panels, verdicts)


def overview(experiment: "Experiment", results: Sequence["Result"], options: Sequence[str], verdicts: str) -> Section:
    """Return the first score over each option, one panel per option."""
    panels = []
    for option in options:
        some = _of_option(results, option)
        panels += _panels(experiment, some, option, quantities(some)[:1])
    return _section(experiment.title, results, panels, verdicts)


def _section(heading: str, results: Sequence["Result"], panels: Sequence[Lines], verdicts: str) -> Section:
    names = {name: name for panel in panels for name in (*panel.lines, *panel.levels)}
    across = " Lines across: not varied." if any(panel.levels for panel in panels) else ""
    return Section(heading, f"{about_seeds(results)}{across} {verdicts}".rstrip(), panels, names)


def _of_option(results: Sequence["Result"], option: str) -> list["Result"]:
    """Return the results that vary this option and those that vary nothing."""
    return [result for result in results if not result.variant.varied or result.variant.varied[0] == option]


def _panels(
    experiment: "Experiment", results: Sequence["Result"], option: str, shown: Sequence[Quantity]
) -> list[Lines]:
    models = list(dict.fromkeys(result.variant.model for result in results if result.variant.varied))
    panels = []
    for quantity in shown:
        for model in models:
            some = [result for result in results if result.variant.model == model]
            panels.append(_panel(experiment, some, option, quantity, model if len(models) > 1 else ""))
    return panels


def _panel(experiment: "Experiment", results: Sequence["Result"], option: str, quantity: Quantity, title: str) -> Lines:
    varying = {result.variant.method for result in results if result.variant.varied}
    fixed, points = defaultdict(list), defaultdict(lambda: defaultdict(list))
    moved = [result for result in results if result.variant.method in varying]
    places, ticks, scale = _places(option, [_value(experiment, result, option) for result in moved], moved)
    for result, place in zip(moved, places, strict=True):
        points[result.variant.method][place].append(result)
    for result in results:
        if result.variant.method not in varying:
            fixed[result.variant.method].append(result)
    lines = {method: _estimates(by_place, quantity) for method, by_place in points.items()}
    levels = {method: made for method, some in fixed.items() if (made := estimate(some, quantity))}
    label = LABELS.get(option, option.replace("_", " "))
    return Lines(label, quantity.label, {m: line for m, line in lines.items() if line}, levels, title, scale, ticks)


def _estimates(by_place: dict[float, list["Result"]], quantity: Quantity) -> list[tuple[float, Estimate]]:
    return [(place, made) for place in sorted(by_place) if (made := estimate(by_place[place], quantity))]


def _places(
    option: str, values: Sequence[float | None], results: Sequence["Result"]
) -> tuple[list[float], dict[float, str], dict]:
    """Return (x of each result, ticks, scale): numeric values, or evenly spaced labels if a value is not a number."""
    if any(value is None for value in values):
        labels = [result.variant.varied[1] if result.variant.varied else "unvaried" for result in results]
        order = list(dict.fromkeys(["unvaried", *labels]))
        return [order.index(label) for label in labels], dict(enumerate(order)), {"value": "linear"}
    names = {value: f"{value:g}" for value in values}
    if option in ZERO_IS_ALL and 0 in names:
        everything = 5 * max(values)
        values = [value or everything for value in values]
        names = {value: name for value, name in names.items() if value} | {everything: "all"}
    return list(values), dict(sorted(names.items())), _scale(list(names))


def _scale(values: Sequence[float]) -> dict:
    """Return a logarithmic scale for a wide range; zero then stands left of the smallest value."""
    positive = [value for value in values if value > 0]
    if min(values) < 0 or not positive or max(positive) < WIDE * min(positive):
        return {"value": "linear"}
    if 0 in values:
        return {"value": "symlog", "linthresh": min(positive), "linscale": 0.6}
    return {"value": "log"}


def _value(experiment: "Experiment", result: "Result", option: str) -> float | None:
    """Return the option's value in a run, or None if it is unknown or not a number."""
    value = result.variant.varied[1] if result.variant.varied else _own_value(experiment, result, option)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _own_value(experiment: "Experiment", result: "Result", option: str) -> object:
    """Return the value of `option` in a run that does not vary it: from its result, else from the experiment's file."""
    name = _field(experiment, option)
    if name in result.training:
        return result.training[name]
    for run in experiment.runs:
        if run.arguments and run.variant == result.variant:
            objective = run.arguments.objective()
            value = getattr(objective if hasattr(objective, name) else run.arguments, name, None)
            return 0 if value is None and option in ZERO_IS_ALL else value
    return None


def _field(experiment: "Experiment", option: str) -> str:
    """Return the option of train.py behind `option`, which is either that option or a label that sets only that option."""
    trained = [run for run in experiment.runs if run.arguments]
    varied = [run for run in trained if (run.variant.varied or ("",))[0] == option]
    plain = [run for run in trained if not run.variant.varied]
    for name in vars(varied[0].arguments) if varied else ():
        values = {str(getattr(run.arguments, name)) for run in plain}
        if name == option or all(
            str(getattr(run.arguments, name)) == run.variant.varied[1] not in values for run in varied
        ):
            return name
    return option


def is_by_rank(published: Published) -> bool:
    """Return True if a method appears at several ranks."""
    rows = {(row.model, row.method) for row in published.rows}
    return len(rows) < len(published.rows)


def published_section(published: Published) -> Section:
    """Return a published figure over rank, one panel per model and column; results without a rank are horizontal lines."""
    panels, names = [], {}
    for model in dict.fromkeys(row.model for row in published.rows):
        for key, column in published.columns.items():
            lines, levels = defaultdict(list), {}
            for row in published.rows:
                if row.model == model and key in row.cells:
                    cell = row.cells[key]
                    point = Estimate(float(cell.mean), float(cell.sd or column.reading_error) or None)
                    names[row.method] = METHODS[row.method]
                    if row.rank is None:
                        levels[row.method] = point
                    else:
                        lines[row.method].append((row.rank, point))
            ranks = sorted({rank for line in lines.values() for rank, _ in line})
            ticks = {rank: str(rank) for rank in ranks}
            label = f"{column.label}, {column.unit}"
            panels.append(Lines("rank", label, dict(lines), levels, model, _scale(ranks), ticks))
    errors = "error bars: how exactly the points were read off the figure; no deviation is printed"
    caption = f"As printed in {published.version}; {errors}. {ELSEWHERE}"
    return Section(f"Paper: {published.title}", caption, panels, names, published=True)
