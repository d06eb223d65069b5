"""Cost estimate of an experiment file, before anything is loaded: python -m ba_lora.experiments run FILE --dry_run.

The table of docs/reproduction.md, one row per file that needs GPUs: python -m ba_lora.experiments.price [FILE ...]

`check` verifies that the data, the model's numbers and the evaluations of every run are known; `price` asks the planner for the
work of each run. Neither needs weights or the hub.
"""

import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import eval.all

from ..data.glue import MNLI_SPLITS, SPLITS
from ..data.gluex import SHIFTS
from ..data.sources import check_generated, is_generated
from ..errors import Parser, UserError, choose, run_cli
from ..planning.devices import UTILISATION
from ..training.arguments import TrainArguments
from ..training.model_numbers import read_numbers
from . import given_texts
from .matrix import FOLDER, Evaluation, Experiment, Run, read_experiment, read_file

DEVICES = "1xA40"  # if the file names none; several GPUs take the same number of GPU-hours
CLASSIFICATION = {"glue": "eval.glue", "gluex": "eval.gluex"}  # benchmark → module
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


class Line(NamedTuple):
    """The runs of one model, data set and method. each: GPU-hours of one run, lowest and highest; total: of all of them.

    Both are None if they cannot be predicted; `reason` says why.
    """

    model: str
    data: str | None
    method: str
    runs: int
    each: tuple[float, float] | None
    total: tuple[float, float] | None
    reason: str = ""


class Price(NamedTuple):
    """The estimate for a whole file. hours: GPU-hours (low, high) of the predicted runs."""

    name: str
    devices: str
    lines: list[Line]

    @property
    def runs(self) -> int:
        return sum(line.runs for line in self.lines)

    @property
    def predicted(self) -> int:
        """Number of runs with predicted hours."""
        return sum(line.runs for line in self.lines if line.total)

    @property
    def hours(self) -> tuple[float, float]:
        totals = [line.total for line in self.lines if line.total]
        return sum(low for low, _ in totals), sum(high for _, high in totals)


def price(experiment: Experiment) -> Price:
    """Return the GPU-hours of an experiment's trainings on its devices: only arithmetic, without loading and evaluation."""
    devices = experiment.devices or DEVICES
    groups: dict[tuple, dict[tuple, list[Run]]] = {}
    for run in experiment.runs:
        if run.arguments:
            cells = groups.setdefault((run.variant.model, run.data, run.method), {})
            cells.setdefault(run.variant.varied, []).append(run)  # runs that differ only in their seed
    return Price(
        experiment.name, devices, [_line(*group, list(cells.values()), devices) for group, cells in groups.items()]
    )


def _line(model: str, data: str | None, method: str, cells: list[list[Run]], devices: str) -> Line:
    runs = sum(len(cell) for cell in cells)
    try:
        hours = [_hours(cell[0].arguments, devices) for cell in cells]
    except UserError as error:
        return Line(model, data, method, runs, None, None, str(error))
    each = min(low for low, _ in hours), max(high for _, high in hours)
    total = tuple(sum(len(cell) * of[end] for cell, of in zip(cells, hours, strict=True)) for end in (0, 1))
    return Line(model, data, method, runs, each, total)


def _hours(arguments: TrainArguments, devices: str) -> tuple[float, float]:
    """Return the GPU-hours (low, high) of one run. Raises UserError with the reason if they cannot be predicted."""
    from ..planning.plan import plan  # torch takes seconds; --help and `check` do without it

    made = plan(replace(arguments, output_dir=None, dry_run=True, devices=devices), memory=False)["devices"]
    hours = made["forms"]["as planned"]["hours"]
    if hours is None:
        raise UserError(f"the number of rows of {arguments.data} is not known; set limit or max_steps")
    return made["count"] * hours[0], made["count"] * hours[1]


def render(priced: Price) -> str:
    """Return a price as lines of text: a table, its sum, and what is not included."""
    rows = [("model", "data", "method", "trainings", "GPU-h each", "GPU-h in all")]
    for line in priced.lines:
        hours = ("not predicted", "") if line.reason else (_range(line.each), _range(line.total))
        rows.append((line.model, line.data or "", line.method, str(line.runs), *hours))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for reason in dict.fromkeys(line.reason for line in priced.lines if line.reason):
        models = dict.fromkeys(line.model for line in priced.lines if line.reason == reason)
        lines.append(f"not predicted, {', '.join(models)}: {reason}")
    low, high = (f"{100 * share:.0f} %" for share in UTILISATION)
    return "\n".join(
        [
            *lines,
            f"{priced.name}: {summary(priced)}",
            f"Predicted from shapes: the arithmetic of training, at {high} to {low} of the peak. Loading, starts, communication and",
            "evaluation are extra. The prediction was not checked on a GPU. Nothing was loaded or written.",
        ]
    )


def summary(priced: Price) -> str:
    """Return a price as one line."""
    unknown = priced.runs - priced.predicted
    if not priced.predicted:
        return f"{priced.runs} trainings, none of them predicted"
    more = f", without {unknown} that are not predicted" if unknown else ""
    return f"{priced.runs} trainings, {_range(priced.hours)} GPU-hours on {priced.devices}{more}"


def _range(hours: tuple[float, float]) -> str:
    if hours[1] < 0.01:
        return "under 0.01"
    digits = 2 if hours[1] < 1 else 1 if hours[1] < 100 else 0
    return f"{hours[0]:,.{digits}f}–{hours[1]:,.{digits}f}"


def check(experiment: Experiment) -> None:
    """Check that all inputs of every run are known, without reading them. Raises UserError naming the file and the run."""
    for run in experiment.runs:
        try:
            read_numbers(run.model)
            if run.arguments:
                _check_data(run.arguments)
                _check_benchmarks(run)
            for evaluation in experiment.evaluations:
                _check_evaluation(evaluation, run.arguments.task if run.arguments else None)
        except UserError as error:
            raise UserError(f"{experiment.file}, run {run.name}: {error}") from None
    rates = experiment.rates_of
    if rates and not (experiment.file.parent / f"{rates}.yaml").is_file():
        raise UserError(f"{experiment.file}: rates_of names {rates}, and {rates}.yaml is not beside it")


def _check_data(arguments: TrainArguments) -> None:
    place = arguments.data_path or arguments.data
    if arguments.task:
        choose("data_split", arguments.data_split, _splits(arguments.task))
    if place:
        _check_place(place)


def _check_place(place: str) -> None:
    """Accept an existing path, a split of the generated problems, or something that looks like a hub id."""
    if is_generated(place):
        check_generated(place)
    elif not Path(place).exists() and not HUB_ID.fullmatch(place):
        raise UserError(f"data {place} is neither an existing path nor a hub id (OWNER/NAME or OWNER/NAME:PART)")


def _check_benchmarks(run: Run) -> None:
    known = CLASSIFICATION if run.arguments.task else {name: row.module for name, row in eval.all.BENCHMARKS.items()}
    for name in run.benchmarks:
        importlib.import_module(known[choose("benchmark", name, known)])


def _check_evaluation(evaluation: Evaluation, task: str | None) -> None:
    if given_texts.kind_of(evaluation.data):
        return given_texts.check(evaluation.data)
    if task is None:
        return _check_place(evaluation.data)
    kind, _, name = evaluation.data.partition(":")
    if choose("evaluation", kind, ("split", "shift")) == "split":
        choose(f"split of {task},", name, _splits(task))
    else:
        choose("set", name, {shift.name for shift in SHIFTS.get(task, ())})


def _splits(task: str) -> dict:
    return MNLI_SPLITS if task == "mnli" else SPLITS


def needs_gpus() -> list[Path]:
    """Return the experiment files that name devices: those of the paper's tables and figures, which no small model can stand for."""
    return sorted(
        (file for file in FOLDER.glob("*.yaml") if read_file(file).get("devices")), key=lambda file: file.stem
    )


def row(file: Path) -> str:
    """Return one line of the table of docs/reproduction.md, in Markdown."""
    priced = price(read_experiment(file, tuned=False))
    hours = _range(priced.hours) if priced.predicted else "not predicted"
    unknown = priced.runs - priced.predicted
    if priced.predicted and unknown:
        hours += f", without {unknown}"
    return f"| [{file.stem}](../configs/experiments/{file.name}) | {priced.runs} | {hours} | {priced.devices} |"


def main() -> None:
    text = "The GPU-hours of experiment files, as a table in Markdown: the arithmetic of training alone."
    parser = Parser(prog="python -m ba_lora.experiments.price", description=text)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="experiment files [those that need GPUs]")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    files = parser.parse_args().files or needs_gpus()
    print("| file | trainings | GPU-hours | on |\n| --- | ---: | ---: | --- |")
    for file in files:
        print(row(file), flush=True)


if __name__ == "__main__":
    run_cli(main)
