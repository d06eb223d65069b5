"""Curves of training: the loss and its terms by step, the schedules of the weights, and singular values."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from eval.harness.statistics import mean_sd

from ...canvas import BEFORE, Estimate, Lines, Section
from ...objective.settings import REGULARIZERS
from .estimates import about_seeds, group_of

if TYPE_CHECKING:  # they import torch, which figures do not need
    from ..matrix import Experiment
    from ..results import Result

STEP = "optimiser step"
LAMBDAS = {each.weight: f"{each.symbol}, {each.name}" for each in REGULARIZERS}
WIDE = 30  # ratio of the largest to the smallest value from which the axis is logarithmic
SMALLEST = 1e-6  # relative to a weight's norm; anything smaller in an update is float32 rounding


def figures(experiment: "Experiment", results: Sequence["Result"]) -> Iterator[tuple[str, list[Section]]]:
    """Yield (file name, sections) of the trained runs' figures, one of each per model and data set."""
    groups = defaultdict(list)
    for result in results:
        groups[group_of(result)].append(result)
    for name, some in groups.items():
        ending = "_" + name.replace(", ", "_").replace("/", "-") if len(groups) > 1 else ""
        title = f"{experiment.title}, {name}" if len(groups) > 1 else experiment.title
        yield f"terms{ending}", _terms(experiment, title, some)
        yield f"schedules{ending}", _schedules(title, some)
        yield f"spectra{ending}", _spectra(title, some)


def _section(heading: str, results: Sequence["Result"], panels: Sequence[Lines], more: str = "") -> list[Section]:
    names = {name: name for panel in panels for name in panel.lines}
    return [Section(heading, about_seeds(results, "bands") + more, panels, names)] if panels else []


def _by_method(results: Sequence["Result"]) -> dict[str, list["Result"]]:
    methods = defaultdict(list)
    for result in results:
        methods[result.variant.method].append(result)
    return methods


def _terms(experiment: "Experiment", title: str, results: Sequence["Result"]) -> list[Section]:
    """Return panels for the loss, the task loss, and each form of each term (forms have different units), one line per method."""
    trained = [run for run in experiment.runs if run.arguments]
    objectives = {run.method: run.arguments.objective() for run in trained}
    task = next((run.arguments.task for run in trained if run.data == results[0].data), None)
    panels = []

    def add(term: str, unit: str, is_of_form: Callable[[str], bool] = lambda method: True) -> None:
        lines = {m: _over_steps(some, term) for m, some in _by_method(results).items() if is_of_form(m)}
        lines = {method: line for method, line in lines.items() if line}
        if lines:
            panels.append(Lines(STEP, unit, lines, title=term, log_y=_is_wide(lines), band=True))

    for term in ("loss", "task"):
        add(term, loss_unit(task))
    for each in REGULARIZERS:
        chosen = {method: getattr(objective, each.option) for method, objective in objectives.items()}
        for name, form in each.forms.items():
            add(each.name, form.unit, lambda method, chosen=chosen, name=name: chosen.get(method) == name)
    return _section(f"{title}: loss and terms", results, panels)


def loss_unit(task: str | None) -> str:
    """Return the unit of the loss: of generation (None) or of a classification task."""
    return {None: "nats per token", "stsb": "squared error"}.get(task, "nats per example")


def _is_wide(lines: dict[str, list[tuple[float, Estimate]]]) -> bool:
    """Return True if one line would flatten the others."""
    means = [point.mean for line in lines.values() for _, point in line]
    return max(means) > WIDE * min(means) > 0


def _over_steps(results: Sequence["Result"], name: str) -> list[tuple[float, Estimate]]:
    """Return the mean over seeds at each logged step."""
    values = defaultdict(list)
    for result in results:
        for step, value in zip(result.curves.get("step", ()), result.curves.get(name, ()), strict=False):
            if value is not None:
                values[step].append(value)
    return [(step, Estimate(*mean_sd(values[step]))) for step in sorted(values)]


def _schedules(title: str, results: Sequence["Result"]) -> list[Section]:
    """Return one panel per distinct schedule of the three weights, titled with the methods that use it."""
    courses = {}
    for method, some in _by_method(results).items():
        lines = {label: tuple(_over_steps(some, name)) for name, label in LAMBDAS.items()}
        if any(point.mean for line in lines.values() for _, point in line):
            courses.setdefault(tuple(lines.values()), []).append(method)
    panels = []
    for course, methods in courses.items():
        lines = {
            label: line for label, line in zip(LAMBDAS.values(), course, strict=True) if any(p.mean for _, p in line)
        }
        panels.append(Lines(STEP, "weight in the loss", lines, title=", ".join(methods), band=True))
    return _section(f"{title}: weights of the terms", results, panels, " Weights that stay 0 are not drawn.")


def _spectra(title: str, results: Sequence["Result"]) -> list[Section]:
    """Return singular values before and after training: of the logits, and of the weights beside their update."""
    spectra = [
        (result.variant.method, result.measures["spectra"]) for result in results if "spectra" in result.measures
    ]
    logits, weights = defaultdict(list), defaultdict(list)
    for method, spectrum in spectra:
        logits[BEFORE].append(spectrum["logits"]["base"])
        logits[method].append(spectrum["logits"]["tuned"])
        if "update" in spectrum:
            weights[BEFORE].append(spectrum["weights"])
            weights[method].append(spectrum["update"])
    panels = []
    for name, norm, of in (
        ("logits Z", "‖Z‖", logits),
        ("weights W before, and update ΔW", "‖W‖", weights),
    ):
        if of:
            lines = {method: _over_numbers(rows) for method, rows in of.items()}
            label = f"singular value, share of {norm}"
            panels.append(Lines("number of the singular value", label, lines, title=name, log_y=True, band=True))
    more = " Logits of the trained tokens of test problems; weights: mean over the layers; Frobenius norms."
    return _section(f"{title}: singular values", results, panels, more)


def _over_numbers(rows: Sequence[Sequence[float]]) -> list[tuple[float, Estimate]]:
    """Return the mean of each singular value over seeds, while it is above rounding error."""
    columns = [Estimate(*mean_sd(column)) for column in zip(*rows, strict=False)]
    return [(number, each) for number, each in enumerate(columns, 1) if each.mean > SMALLEST]
