"""Experiments as one HTML page: tables, figures, the origin of each number, and a filter by model and method.

The page needs no network and no other file. The template is report.html beside this module, filled in by Jinja2, which escapes
the content of result files.
"""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jinja2

from ..errors import UserError
from ..files import atomic_write
from .matrix import Experiment, Variant
from .own_tables import own_tables
from .paper.published import Printed, Published
from .results import Result
from .tables.build import HERE, NOT_RUN, Row, Table, build, marks
from .tables.columns import Column
from .tables.formats import (
    EMPTY,
    comparison_lines,
    known_errors,
    notes,
    statistics_note,
    statistics_titles,
    text_of,
)
from .tables.rows import ROWS

CAPTIONS = {
    "bars": "Scores by method",
    "curves": "Scores over every option that is varied",
    "terms": "Loss and terms over the steps",
    "schedules": "Weights of the terms over the steps",
    "spectra": "Singular values before and after",
    "cost": "Training time and peak memory",
    "dose_response": "Planted content over its dose",
    "traces": "Planted content that is left, by method",
    "paths": "Planted content against the loss on the new task",
}


class Number(NamedTuple):
    """A cell: its text, its sort key, and "best", "second" or None."""

    text: str
    value: float | None = None
    mark: str | None = None


class Line(NamedTuple):
    """A row. where: "here", "not run here", or the paper's version; numbers: one per column, empty if nothing was run."""

    variant: Variant
    where: str
    seeds: int
    numbers: list[Number]


class Grid(NamedTuple):
    """A table of the page. titles: of the number columns; source: set for a table of the paper; errors: known errors."""

    titles: list[str]
    lines: list[Line]
    source: str = ""
    errors: tuple[str, ...] = ()

    @property
    def is_varied(self) -> bool:
        return any(line.variant.varied for line in self.lines)


def write_report(
    experiments: Iterable[tuple[Experiment, list[Result]]], output: Path, figures: Path | None = None
) -> Path:
    """Write the page about the experiments with results or published numbers to `output`, atomically; return the path.

    figures: the folder whose NAME/*.png are shown with the experiment NAME. Raises UserError if there is nothing to show.
    """
    sections = [section for given in experiments if (section := _section(*given, figures))]
    if not sections:
        raise UserError(f"{output}: nothing to report; first run: python -m ba_lora.experiments run")
    lines = [line for section in sections for grid in section["grids"] for line in grid.lines]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        sections=sections,
        models=sorted({line.variant.model for line in lines}),
        methods=list(dict.fromkeys(line.variant.method for line in lines)),
        rows=len(lines),
        meanings=_meanings(lines),
    )
    with atomic_write(output) as file:
        file.write(page)
    return Path(output)


def _meanings(lines: Iterable[Line]) -> dict[str, str]:
    """Return {name of a row on the page: its meaning}, in the order of ROWS; a row that only one experiment has is not there."""
    shown = {line.variant.method for line in lines}
    return {name: meaning for name, meaning in ROWS.items() if name in shown}


def _section(experiment: Experiment, results: list[Result], figures: Path | None) -> dict | None:
    """Return the template's values for one experiment, or None if there is nothing to show."""
    own = own_tables(experiment)
    values = {"grids": [], "parts": own.page(experiment, results)} if own else _tables(build(experiment, results))
    if not any(values.get(key) for key in ("grids", "parts")):
        return None
    environments = _environments(results)
    return values | {
        "experiment": experiment,
        "figures": _figures(figures / experiment.name) if figures else [],
        "scored": _scored(results),
        "runs": [(result, environments.get(_key(result))) for result in results],
        "environments": [json.loads(key) for key in environments],
    }


def _tables(table: Table) -> dict:
    """Return the template's values for the tables of an experiment; without any grid if it has neither results nor the paper's."""
    if not (table.results or table.beside or table.published):
        return {"grids": []}
    return {
        "grids": [_grid(table), *(_grid_of_paper(paper) for paper in table.published)],
        "parts": [],
        "notes": notes(table),
        "statistics": statistics_titles(table),
        "statistics_note": statistics_note(table),
        "comparisons": list(zip(table.comparisons, comparison_lines(table), strict=True)),
    }


def _grid(table: Table) -> Grid:
    found = marks(table)
    lines = []
    for number, row in enumerate(table.rows):
        where = row.source if row.source in (HERE, NOT_RUN) else f"paper: {row.source}"
        numbers = []
        for column in table.columns if row.source != NOT_RUN else ():
            numbers.append(_number(row, column)._replace(mark=found.get((number, column.key))))
        lines.append(Line(row.variant, where, row.seeds, numbers))
    errors = tuple(error for paper in table.beside for error in known_errors(paper))
    return Grid([column.title for column in table.columns], lines, errors=errors)


def _number(row: Row, column: Column) -> Number:
    if column.key in row.printed:
        return _printed(row.printed[column.key])
    if column.key in row.cells:
        cell = row.cells[column.key]
        return Number(text_of(cell, column), cell.mean * column.scale)
    return Number(EMPTY)


def _grid_of_paper(paper: Published) -> Grid:
    lines = []
    for row in paper.rows:
        variant = Variant(row.model, row.method, ("rank", str(row.rank)) if row.rank else None)
        lines.append(Line(variant, "paper", 0, [_printed(row.cells.get(key)) for key in paper.columns]))
    titles = [f"{column.label} {column.unit}".strip() for column in paper.columns.values()]
    source = f"The paper's, not measured here: {paper.title}; {paper.version}. Read from {paper.source}."
    return Grid(titles, lines, source, tuple(known_errors(paper)))


def _printed(cell: Printed | None) -> Number:
    if cell is None:
        return Number(EMPTY)
    return Number(f"{cell}\ncorrected: {cell.corrected}" if cell.corrected else str(cell), float(cell.mean))


def _figures(folder: Path) -> list[tuple[str, str]]:
    """Return (caption, base64) of the PNG files in `folder`."""
    found = []
    for file in sorted(folder.glob("*.png")):
        option = file.stem.removeprefix("curves_")
        caption = f"Scores over {option}" if option != file.stem else CAPTIONS.get(file.stem, file.stem)
        found.append((caption, base64.b64encode(file.read_bytes()).decode()))
    return found


def _scored(results: list[Result]) -> list[str]:
    """Return how each column was scored, one line per column; read_results has checked that it is consistent."""
    scores = {name: score for result in results for name, score in result.scores.items()}
    return [
        f"{name}: {score.metric} on {score.n:,} items, protocol {score.protocol}, data hash {score.data_hash}"
        for name, score in scores.items()
    ]


def _environments(results: list[Result]) -> dict[str, int]:
    """Return {commit, versions and machine as JSON: its number, from 1}, each environment once."""
    return {key: number for number, key in enumerate(dict.fromkeys(filter(None, map(_key, results))), start=1)}


def _key(result: Result) -> str:
    return json.dumps(result.provenance) if result.provenance else ""
