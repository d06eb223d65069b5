"""Figure of one run by step: its loss and terms, the weights in force, and the contribution of each term to the loss."""

import math
from pathlib import Path

from ...canvas import looks, style, write
from ...errors import UserError
from ...files import check_kinds, read_json, read_json_lines
from ...folders.checksums import check_of_run
from ...objective.settings import METRICS, REGULARIZERS, TERMS, of_training
from .training_curves import loss_unit

COLUMNS = 3  # of panels
TERMS_PNG = "terms.png"


def draw_terms(where: str, output: str | Path | None = None) -> Path:
    """Draw `where`/metrics.jsonl into `where`/terms.png (or `output`); return the file. Raises UserError if it is empty or missing."""
    source = Path(where) / "metrics.jsonl" if Path(where).is_dir() else Path(where)
    if not source.is_file():
        raise UserError(f"{source} does not exist; give the folder of a training run")
    check_of_run(source.parent, source.name)
    rows = of_training(read_json_lines(source, METRICS))
    for row in rows:
        check_kinds(row, f"{source}, step {row['step']}", {"loss": "a number", "task": "a number"})
    if not rows:
        raise UserError(f"{source} is empty: the run has logged no step")
    record = source.parent / "run.json"
    kinds = {"config": "an object", "objective": "an object"}
    run = read_json(record, kinds=kinds) if record.is_file() else None
    with style():
        return write(_figure(rows, run), Path(output) if output else source.parent / TERMS_PNG)


def _figure(rows: list[dict], run: dict | None):
    """rows: lines of metrics.jsonl. run: the run.json beside it, which gives the units of the axes."""
    from matplotlib.figure import Figure

    steps, names = [row["step"] for row in rows], ["loss", *TERMS]
    styles = looks(names)
    for number, name in enumerate(names):  # stagger the markers of lines that coincide
        every = max(1, len(steps) // 8)
        styles[name] = styles[name] | {"markevery": (number % every, every)}
    titles = ("loss and task", *TERMS[1:], "weights", "share of the loss")
    lines = math.ceil(len(titles) / COLUMNS)
    figure = Figure(figsize=(10, 2.75 * lines))
    axes = figure.subplots(lines, COLUMNS, sharex=True)
    panels = dict(zip(titles, axes.flat, strict=False))
    for axis in axes.flat[len(titles) :]:
        axis.set_visible(False)
    for name, axis in panels.items():
        axis.set_title(name)
    for name in ("loss", "task"):
        panels["loss and task"].plot(steps, [row[name] for row in rows], label=name, **styles[name])
    for each in REGULARIZERS:
        name, none = each.name, float("nan")  # a run of an earlier version may lack a term
        values = [none if row.get(name) is None else row[name] for row in rows]
        panels[name].plot(steps, values, **styles[name])
        weights = [none if row.get(each.weight) is None else row[each.weight] for row in rows]
        panels["weights"].plot(steps, weights, label=f"{each.weight} ({name})", **styles[name])
        added = [factor * value for factor, value in zip(weights, values, strict=True)]
        panels["share of the loss"].plot(steps, added, label=f"{each.weight} · {name}", **styles[name])
    if run:
        panels["loss and task"].set_ylabel(loss_unit(run["config"].get("task")))
        for each in REGULARIZERS:
            if form := each.forms.get(run["objective"].get(each.option)):
                panels[each.name].set_ylabel(form.unit)
    for name in ("loss and task", "weights", "share of the loss"):
        panels[name].legend()
    for axis in axes[-1]:
        axis.set_xlabel("optimiser step")
    return figure
