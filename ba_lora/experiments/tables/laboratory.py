"""The table of an experiment with twins: traces by class, dose and method, and the verdicts on the primary comparison."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eval.harness.statistics import Interval

from ...texts import csv_cell
from ..twin_axis import PrimarySettings
from .formats import p_text
from .parts import Part
from .planted import Primary
from .trace_records import (
    BASE,
    PLANTED,
    estimate_of,
    estimate_text,
    per_pair,
    relative_differences,
    verdicts,
)

TITLES = ("class", "dose", "method", "pairs", "T, points", "D, %", "task loss, nats", "verdict")
PRIMARY = (
    *("class", "pairs", "D, %", "90 % interval", "p", "p after Holm", "p by signs", "p by signs after Holm"),
    *("D of the harmless", "D − D of the harmless", "task loss, nats", "verdict", "alleviates"),
)
NOTE = (
    "T: trace, 100 · mean (s of twin A − s of twin B), 100 if everything planted is kept. D: T minus T of {reference}, in percent of the "
    "bases' mean T, where that is at least {planted:g} points. T is the mean over the fine-tuning seeds that a method has; D compares the "
    "seeds that both have. Brackets: 95 % t-intervals over pairs. Only the cells of the primary "
    "comparison, {ours} against {reference}, have a verdict; the other intervals are not corrected for their number."
)
PRIMARY_NOTE = (
    "Less: the 95 % interval of D is below 0, its p (paired t-test) after Holm over the classes is below 0.05, and D is at most −{margin:g}. More: "
    "mirrored. Equivalent: the 90 % interval lies within ±{margin:g}. Undecided: none of these. P by signs: an exact sign-flip test, which decides "
    "nothing. "
    "Alleviates: less, the 95 % interval of D − D of the harmless counterpart is below 0, and the 90 % interval of the "
    "difference of the held-out task losses (in the column task loss) ends below {loss_margin:g}."
)


@dataclass(frozen=True)
class Cell:
    """One method on one class and dose. trace, difference: mean and ends, or the mean alone in place of all three."""

    name: str
    dose: float | None
    method: str
    pairs: int
    trace: Interval | float
    difference: Interval | float | None
    task_loss: float


@dataclass(frozen=True)
class LaboratoryTable:
    """settings: the comparison with verdicts; failed: controls that failed or are open, which rule out any verdict; missing: method →
    which runs it lacks."""

    cells: list[Cell]
    primary: list[Primary]
    settings: PrimarySettings
    failed: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def laboratory_table(
    records: Sequence[dict],
    counterparts: Mapping[str, str],
    settings: PrimarySettings,
    failed: Sequence[str] = (),
    missing: Mapping[str, str] | None = None,
) -> LaboratoryTable:
    """Return the table of `records` (trace_records.py), its rows in their order. counterparts: class of defects → its harmless class."""
    groups = dict.fromkeys((record["class"], record["dose"]) for record in records)
    methods = dict.fromkeys([BASE, *(record["method"] for record in records if record["path"] is None)])
    cells = [_cell(records, *group, method, settings.reference) for group in groups for method in methods]
    judged = verdicts(records, settings, counterparts)
    return LaboratoryTable([cell for cell in cells if cell], judged, settings, failed, missing or {})


def _cell(records, name: str, dose: float | None, method: str, reference: str) -> Cell | None:
    """Return one method's cell, or None if it was not run on this class and dose."""
    traces = per_pair(records, method, name, dose)
    if not traces:
        return None
    differences = {}
    if method not in (BASE, reference):
        differences = relative_differences(records, method, reference, name, dose)
    losses = per_pair(records, method, name, dose, "task_loss")
    loss = sum(losses.values()) / len(losses)
    return Cell(name, dose, method, len(traces), estimate_of(traces), estimate_of(differences), loss)


def table_parts(table: LaboratoryTable) -> list[Part]:
    """Return both tables with their notes, the controls that failed and the methods that lack runs."""
    settings = table.settings
    notes = [NOTE.format(ours=settings.method, reference=settings.reference, planted=PLANTED)]
    if table.missing:
        lacking = "; ".join(f"{method}: {what}" for method, what in table.missing.items())
        notes.append(f"Not run, or not for every pair and seed: {lacking}.")
    if table.failed:
        notes.append(f"No verdict, because a control failed or is open: {', '.join(table.failed)}.")
    if not table.primary:
        notes.append("No verdict: it needs two pairs with both methods, and planted content in every class.")
    parts = [Part("Traces", TITLES, [[cell.name, *_texts(table, cell)] for cell in table.cells], 3, notes)]
    if table.primary:
        heading, lines = f"{settings.method} against {settings.reference}", table.primary
        note = PRIMARY_NOTE.format(margin=settings.margin, loss_margin=settings.loss_margin)
        parts.append(Part(heading, PRIMARY, [_primary_line(table, each) for each in lines], 1, [note]))
    return parts


def _texts(table: LaboratoryTable, cell: Cell) -> list[str]:
    """Return the cells of a row after the class."""
    dose = "all" if cell.dose is None else f"{cell.dose:g}"
    numbers = (estimate_text(cell.trace, "{:.1f}"), estimate_text(cell.difference, "{:+.1f}"), f"{cell.task_loss:.3f}")
    return [dose, cell.method, str(cell.pairs), *numbers, _word(table, cell)]


def _word(table: LaboratoryTable, cell: Cell) -> str:
    """Return the verdict of a cell of the primary comparison, and nothing for the others."""
    found = [
        each
        for each in table.primary
        if (each.name, table.settings.method, None) == (cell.name, cell.method, cell.dose)
    ]
    return _verdict(table, found[0]) if found else ""


def _verdict(table: LaboratoryTable, made: Primary) -> str:
    return "none" if table.failed else made.verdict


def _primary_line(table: LaboratoryTable, made: Primary) -> list[str]:
    narrow = estimate_text(made.narrow, "{:+.1f}").partition(" ")[2]
    p = [p_text(value) for value in (made.p, made.corrected, made.flipped, made.flipped_corrected)]
    others = [
        estimate_text(made.harmless, "{:+.1f}"),
        estimate_text(made.beyond, "{:+.1f}"),
        estimate_text(made.loss, "{:+.3f}"),
    ]
    alleviates = "no verdict" if table.failed else "yes" if made.alleviates else "no"
    pairs = str(len(made.differences))
    words = (_verdict(table, made), alleviates)
    return [made.name, pairs, estimate_text(made.wide, "{:+.1f}"), narrow, *p, *others, *words]


def to_csv(table: LaboratoryTable) -> str:
    """Return one line per cell; D and the ends are empty where there are none."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["class", "dose", "method", "pairs", "T", "T low", "T high", "D", "D low", "D high", "task loss", "verdict"]
    )
    for cell in table.cells:
        estimates = [*_numbers(cell.trace), *_numbers(cell.difference)]
        dose = "all" if cell.dose is None else f"{cell.dose:g}"
        names = csv_cell(cell.name), dose, csv_cell(cell.method)
        writer.writerow([*names, cell.pairs, *estimates, f"{cell.task_loss:.6g}", _word(table, cell)])
    return stream.getvalue()


def _numbers(value: Interval | float | None) -> list[str]:
    """Return mean, low and high as written."""
    if value is None:
        return [""] * 3
    return [f"{each:.6g}" for each in value] if isinstance(value, Interval) else [f"{value:.6g}", "", ""]
