"""The table and the figures of an experiment on mirror twins (docs/laboratory.md)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..canvas import FORMATS
from ..files import atomic_write
from ..texts import markdown
from .figures import laboratory as figures
from .matrix import Experiment
from .results import Result
from .tables.controls import FAILED, OPEN, Control, controls
from .tables.formats import grid
from .tables.laboratory import laboratory_table, to_csv, to_markdown
from .tables.planted import Primary, predicted_half_width
from .tables.planted_results import records
from .tables.trace_paths import paths_to_markdown
from .tables.trace_records import BASE
from .twin_axis import PrimarySettings, twins_of

COUNTERPARTS = {"stereotype": "association", "wrong facts": "custom"}  # class of defects: the harmless one of its form
OWN_TASK = "own-task"  # the evaluation that the gate reads


def is_laboratory(experiment: Experiment) -> bool:
    """Return True if the experiment runs on mirror twins."""
    return bool(twins_of(experiment.runs))


def tables(experiment: Experiment, results: Sequence[Result]) -> dict[str, str]:
    """Return {"markdown": text, "csv": text} of the results: controls, traces by class and method, and verdicts."""
    found, primary = records(results, twins_of(experiment.runs)), experiment.primary
    if not found:
        return {"markdown": f"# {markdown(experiment.title)}\n\nNo pair of twins was measured.\n", "csv": ""}
    checks = _controls(found, primary, results)
    failed = [each.name for each in checks if each.status in (FAILED, OPEN)]
    table = laboratory_table(found, COUNTERPARTS, primary, failed, not_run(experiment, results))
    lines = [[markdown(each.name), markdown(each.found), each.status] for each in checks]
    checked = grid(("control", "found, points", ""), lines, 3)
    parts = [f"# {markdown(experiment.title)}", "## Controls", checked, "## Traces", to_markdown(table).rstrip("\n")]
    if primary.predict and table.primary:
        parts.append(_prediction(table.primary, primary.predict))
    if paths := paths_to_markdown(found, primary.reference, primary.path_loss).rstrip("\n"):
        parts += ["## Paths", paths]
    if experiment.note:
        parts.append(experiment.note)
    return {"markdown": "\n\n".join(parts) + "\n", "csv": to_csv(table)}


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
    widths = [f"±{predicted_half_width(each.differences, pairs):.1f} ({markdown(each.name)})" for each in judged]
    return f"If D deviates over pairs as here, its 95 % interval over {pairs} pairs is {', '.join(widths)}."


def _controls(found: Sequence[dict], primary: PrimarySettings, results: Sequence[Result]) -> list[Control]:
    bases = [result for result in results if result.variant.method == BASE and OWN_TASK in result.scores]
    accuracies = {result.variant.model: result.scores[OWN_TASK].score for result in bases}
    return controls(found, primary, list(COUNTERPARTS), accuracies)


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
    return figures.draw(records(results, twins_of(experiment.runs)), output, formats)
