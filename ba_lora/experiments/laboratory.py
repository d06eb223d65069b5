"""The table and the figures of an experiment on mirror twins (docs/laboratory.md)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..canvas import FORMATS
from ..files import atomic_write
from ..texts import markdown
from .figures import laboratory as figures
from .matrix import Experiment, read_file
from .results import Result
from .tables.contrasts import contrast_parts
from .tables.controls import FAILED, OPEN, PASSED, Control, controls
from .tables.laboratory import LaboratoryTable, laboratory_table, table_parts, to_csv
from .tables.parts import Part, to_markdown
from .tables.planted import Primary, predicted_half_width
from .tables.planted_results import records
from .tables.trace_paths import path_parts
from .tables.trace_records import BASE
from .twin_axis import twins_of

COUNTERPARTS = {"stereotype": "association", "wrong facts": "custom"}  # class of defects: the harmless one of its form
OWN_TASK = "own-task"  # the evaluation that the gate reads


def is_laboratory(experiment: Experiment) -> bool:
    """Return True if the experiment runs on mirror twins."""
    return bool(twins_of(experiment.runs))


class _Measured(NamedTuple):
    """What the results say: the records, the controls, and the table, which has no verdict if a control failed or is open."""

    found: list[dict]
    checks: list[Control]
    table: LaboratoryTable


def page(experiment: Experiment, results: Sequence[Result]) -> list[Part]:
    """Return the tables of the results: controls, traces by class and method, verdicts, paths; [] if no pair was measured."""
    made = _measured(experiment, results)
    return _parts(experiment, made) if made else []


def tables(experiment: Experiment, results: Sequence[Result]) -> dict[str, str]:
    """Return {"markdown": text, "csv": text} of the results; the second has the traces alone."""
    title, made = f"# {markdown(experiment.title)}\n\n", _measured(experiment, results)
    if made is None:
        return {"markdown": f"{title}No pair of twins was measured.\n", "csv": ""}
    return {"markdown": title + to_markdown(_parts(experiment, made)), "csv": to_csv(made.table)}


def _measured(experiment: Experiment, results: Sequence[Result]) -> _Measured | None:
    found = records(results, twins_of(experiment.runs))
    if not found:
        return None
    checks = _controls(experiment, results, found)
    failed = [each.name for each in checks if each.status in (FAILED, OPEN)]
    table = laboratory_table(found, COUNTERPARTS, experiment.primary, failed, not_run(experiment, results))
    return _Measured(found, checks, table)


def _parts(experiment: Experiment, made: _Measured) -> list[Part]:
    primary = experiment.primary
    checked = Part("Controls", ("control", "found, points", ""), [list(each) for each in made.checks], 3)
    parts = [checked, *table_parts(made.table)]
    if primary.predict and made.table.primary:
        parts.append(Part("", notes=[_prediction(made.table.primary, primary.predict)]))
    parts += contrast_parts(made.found, primary.contrasts, COUNTERPARTS)
    parts += path_parts(made.found, primary.reference, primary.path_loss)
    return [*parts, Part("", notes=[experiment.note])] if experiment.note else parts


def not_run(experiment: Experiment, results: Sequence[Result]) -> dict[str, str]:
    """Return {method: how many of its runs were measured} of the methods that lack some."""
    planned, made = (Counter(each.variant.method for each in runs) for runs in (experiment.runs, results))
    return {
        method: f"{made[method]} of {number} runs were measured"
        for method, number in planned.items()
        if made[method] < number
    }


def _prediction(judged: Sequence[Primary], pairs: int) -> str:
    """Return the half-widths that the intervals of D would have over more pairs."""
    widths = [f"±{predicted_half_width(each.differences, pairs):.1f} ({each.name})" for each in judged]
    return f"If D deviates over pairs as here, its 95 % interval over {pairs} pairs is {', '.join(widths)}."


def _controls(experiment: Experiment, results: Sequence[Result], found: Sequence[dict]) -> list[Control]:
    primary = experiment.primary
    bases = [result for result in results if result.variant.method == BASE and OWN_TASK in result.scores]
    accuracies = {result.variant.model: result.scores[OWN_TASK].score for result in bases}
    return [_all_run(experiment, results), *controls(found, primary, list(COUNTERPARTS), accuracies)]


def _all_run(experiment: Experiment, results: Sequence[Result]) -> Control:
    """Every run of the file counts, also those that --seeds or --methods left out of `experiment`.

    Without this control the study could be ended at the pair after which the verdict is welcome.
    """
    content, primary = read_file(experiment.file), experiment.primary
    planned = 2 * len(content["twins"]) * (1 + 2 * len(content["seeds"]))  # bases have no seed
    made = sum(each.variant.method in (BASE, primary.method, primary.reference) for each in results)
    status = PASSED if made >= planned else OPEN
    return Control("every run of the primary comparison was measured", f"{made} of {planned} runs", status)


def write_tables(experiment: Experiment, results: Sequence[Result], folder: Path) -> list[Path]:
    """Write table.md and table.csv into `folder`; return the files."""
    made = tables(experiment, results)
    files = {"markdown": folder / "table.md", "csv": folder / "table.csv"}
    for kind, file in files.items():
        with atomic_write(file) as stream:
            stream.write(made[kind])
    return list(files.values())


def draw(
    experiment: Experiment, results: Sequence[Result], output: str | Path, formats: Iterable[str] = FORMATS
) -> list[Path]:
    """Draw the figures that the results support into `output`; return the files."""
    primary = experiment.primary
    shown = [name for name in (primary.reference, primary.method, primary.counter) if name] if primary else []
    return figures.draw(records(results, twins_of(experiment.runs)), output, formats, over_dose=shown)
