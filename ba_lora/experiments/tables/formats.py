"""A table as Markdown, CSV or LaTeX (booktabs), with its notes."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ...files import atomic_write
from ...texts import csv_cell, latex, latex_comment, markdown
from ..matrix import Variant
from ..paper.published import METHODS, Published
from .build import HERE, NOT_RUN, Cell, Comparison, Row, Table, marks
from .columns import Column

FILES = {"markdown": "table.md", "csv": "table.csv", "latex": "table.tex"}
EMPTY = "–"
STATISTICS = ("column", "difference", "points", "95 % interval", "p over seeds", "p after Holm", "seeds", "verdict")
MARGINS = ("90 % interval", "margin")  # further columns of an experiment with margins
STATISTICS_NOTE = (
    "Differences are paired by seed and test item: a bootstrap interval over items and seeds, and a t-test over seeds, corrected for "
    "the number of rows in a column. Less, more: the 95 % interval excludes 0 and the corrected p is below 0.05. Undecided: neither was "
    "shown, which does not mean that there is no difference."
)
MARGINS_NOTE = (
    "Margin: the smallest difference of interest, fixed in the experiment's file; without one nothing is called equivalent. With one, "
    "less and more need a difference of at least the margin, and equivalent means that the whole 90 % interval (t over seeds, "
    "widened by the choice of the items) lies within ± the margin; this is not corrected for the number of rows."
)


def write_tables(table: Table, folder: Path) -> list[Path]:
    """Write the table in every format into `folder`."""
    made = []
    for kind, name in FILES.items():
        made.append(folder / name)
        with atomic_write(made[-1]) as file:
            file.write(RENDER[kind](table))
    return made


def render(table: Table, kind: str) -> str:
    """Return the table in one format of FILES."""
    return RENDER[kind](table)


def _titles(table: Table) -> list[str]:
    return [title for title, _ in _leading(table.rows)] + [column.title for column in table.columns]


def _leading(rows: list[Row]) -> list[tuple[str, object]]:
    """Return the columns that identify a row: (title, row → text); columns that are the same everywhere are omitted."""
    parts = [("model", lambda row: row.variant.model), ("method", lambda row: row.variant.method)]
    if len({row.variant.model for row in rows}) == 1:
        parts.pop(0)
    if any(row.variant.varied for row in rows):
        parts.append(("with", lambda row: " = ".join(row.variant.varied) if row.variant.varied else EMPTY))
    if any(row.source != HERE for row in rows):
        parts.append(("where", lambda row: row.source if row.source in (HERE, NOT_RUN) else f"paper: {row.source}"))
    if any(row.seeds for row in rows):
        parts.append(("seeds", lambda row: str(row.seeds) if row.seeds else EMPTY))
    return parts


def text_of(cell: Cell, column: Column) -> str:
    """Return a mean and its deviation as printed."""
    if column.digits < 0:
        return f"{cell.mean * column.scale:g}"
    mean = f"{cell.mean * column.scale:,.{column.digits}f}"
    if cell.sd is None or (column.digits == 0 and cell.sd * column.scale < 0.5):
        return mean
    return f"{mean} ± {cell.sd * column.scale:,.{column.digits}f}"


def _texts(table: Table, row: Row) -> dict[str, str]:
    """Return {column: its text} of one row."""
    texts = {}
    for column in table.columns:
        printed = row.printed.get(column.key)
        if printed:
            corrected = f" (corrected: {printed.corrected})" if printed.corrected else ""
            texts[column.key] = f"{printed}{corrected}"
        else:
            texts[column.key] = text_of(row.cells[column.key], column) if column.key in row.cells else EMPTY
    return texts


def to_markdown(table: Table) -> str:
    """Return everything: table, notes, statistics, the paper's other tables."""
    found, leading = marks(table), _leading(table.rows)
    marked = {"best": "**{}**", "second": "<u>{}</u>", None: "{}"}
    lines = []
    for number, row in enumerate(table.rows):
        texts = _texts(table, row)
        cells = [of(row) for _, of in leading]
        cells = [markdown(cell) for cell in cells]
        lines.append(cells + [marked[found.get((number, key))].format(text) for key, text in texts.items()])
    parts = [f"# {markdown(table.experiment.title)}"]
    if not table.results:
        parts.append("None of this was run here: the numbers are the paper's.")
    parts.append(grid([markdown(title) for title in _titles(table)], lines, len(leading)))
    parts += [markdown(notes(table)), _statistics(table)]
    parts += [_errors(paper) for paper in table.beside]
    parts += [_published(paper) for paper in table.published]
    return "\n\n".join(part for part in parts if part) + "\n"


def grid(titles: Sequence[str], lines: list[list[str]], leading: int) -> str:
    """Return a Markdown table whose first `leading` columns are words and whose others are numbers."""
    rule = ["---"] * leading + ["---:"] * (len(titles) - leading)
    return "\n".join("| " + " | ".join(line) + " |" for line in (titles, rule, *lines))


def notes(table: Table) -> str:
    """Return the notes below the table: what the numbers are, and what they are not."""
    experiment, said = table.experiment, []
    if table.results:
        said.append(
            "Mean ± standard deviation over seeds. Bold: the best mean of a group; underlined: the second best, as printed."
        )
    for evaluation in experiment.evaluations if table.results else ():
        limit = f"{evaluation.limit} of " if evaluation.limit else ""
        said.append(f"{evaluation.name}: {limit}{evaluation.data}.")
    keys = {column.key for column in table.columns}
    if "macro_f1" in keys:
        said.append(f"Macro-F1, recall and calibration error (15 bins): on {experiment.evaluations[0].name}.")
        shares = table.results[0].measures.get("majority") or {}
        listed = ", ".join(f"{name} {100 * share:.1f}" for name, share in shares.items())
        said.append(f"Accuracy of always predicting the most common class, in percent: {listed}.")
    said += [column.note for column in table.columns if column.note]
    if "average" in keys:
        which = "all columns" if table.with_mt_bench else "the columns in percent"
        said.append(f"Average: over {which}, also for the paper's rows.")
    if experiment.tuning and any(result.training.get("tuned") for result in table.results):
        tuning = experiment.tuning
        said.append(
            f"Learning rates: the best of {rates_of(tuning)} for each method, chosen on {tuning.get('limit') or 'all'} problems of "
            f"{tuning['data']} in one run each with seed {tuning['seed']}; the intervals do not account for this choice."
        )
    elif experiment.rates_of and any(result.training.get("tuned") for result in table.results):
        said.append(f"Learning rates: chosen by the tuning of {experiment.rates_of}, unless varied.")
    return " ".join([*said, experiment.note or ""]).strip()


def rates_of(tuning: dict) -> str:
    """Return the learning rates among which a tuning chose, in words."""
    rates = tuning["learning_rates"]
    groups = rates if isinstance(rates, dict) else {"": rates}
    return "; ".join(
        f"{name} {', '.join(f'{float(rate):g}' for rate in each)}".strip() for name, each in groups.items()
    )


def _statistics(table: Table) -> str:
    if not table.comparisons:
        return ""
    lines = [[*map(markdown, texts[:2]), *texts[2:]] for texts in comparison_lines(table)]
    return f"{statistics_note(table)}\n\n{grid(statistics_titles(table), lines, 2)}"


def statistics_titles(table: Table) -> tuple[str, ...]:
    """Return the titles above `comparison_lines`; the last is the verdict's."""
    return (*STATISTICS[:-1], *(MARGINS if table.experiment.margins else ()), STATISTICS[-1])


def statistics_note(table: Table) -> str:
    """Return how the differences were tested, and what the verdicts mean."""
    return f"{STATISTICS_NOTE} {MARGINS_NOTE}" if table.experiment.margins else STATISTICS_NOTE


def comparison_lines(table: Table) -> list[list[str]]:
    """Return the texts under `statistics_titles` of each comparison."""
    columns = {column.key: column for column in table.columns}
    several = len({each.variant.model for each in table.comparisons}) > 1
    with_margin = bool(table.experiment.margins)
    return [_comparison_line(each, columns[each.column], several, with_margin) for each in table.comparisons]


def name_of(variant: Variant) -> str:
    """Return a method and what was varied, as one line of text."""
    return variant.method + (f" {variant.varied[0]} = {variant.varied[1]}" if variant.varied else "")


def _interval(ends: tuple[float, float] | None, column: Column, digits: int) -> str:
    return f"[{', '.join(f'{end * column.scale:+.{digits}f}' for end in ends)}]" if ends else EMPTY


def _comparison_line(made: Comparison, column: Column, several: bool, with_margin: bool) -> list[str]:
    digits = 1 if column.scale == 100 else 2
    p = [p_text(value) for value in (made.p, made.corrected)]
    difference = f"{name_of(made.variant)} − {name_of(made.reference)}"
    label = column.title.removesuffix(" %") + (f", {made.variant.model}" if several else "")
    points = f"{made.difference * column.scale:+.{digits}f}"
    margin = []
    if with_margin:  # two decimals, because an end may be close to the margin
        bound = EMPTY if made.margin is None else f"±{made.margin * column.scale:g}"
        margin = [_interval(made.narrow, column, 2), bound]
    return [label, difference, points, _interval(made.interval, column, 1), *p, str(made.seeds), *margin, made.verdict]


def p_text(value: float | None) -> str:
    """Return a p value as printed."""
    return EMPTY if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _errors(paper: Published) -> str:
    """Return the known errors of a table of the paper."""
    head = f"The paper's numbers: {paper.title}; {paper.version}; source: {paper.source}."
    lines = [f"- {error}" for error in known_errors(paper)]
    return "\n".join([head, *(["", "Known errors and doubts:", "", *lines] if lines else [])])


def known_errors(paper: Published) -> list[str]:
    """Return where, what and what follows, one line per error."""
    return [f"{', '.join(error.where)}: {error.what} {error.follows}".rstrip() for error in paper.errors]


def _published(paper: Published) -> str:
    """Return a whole table of the paper, marked as such."""
    columns = paper.columns
    is_ranked = any(row.rank for row in paper.rows)
    titles = ["model", "method", *(["rank"] if is_ranked else [])]
    titles += [f"{column.label} {column.unit}".strip() for column in columns.values()]
    lines = []
    for row in paper.rows:
        cells = [row.model, METHODS[row.method], *([str(row.rank or EMPTY)] if is_ranked else [])]
        for key in columns:
            cell = row.cells.get(key)
            corrected = f" (corrected: {cell.corrected})" if cell and cell.corrected else ""
            cells.append(f"{cell}{corrected}" if cell else EMPTY)
        lines.append(cells)
    leading = 3 if is_ranked else 2
    return f"## The paper's, not measured here: {paper.title}\n\n{grid(titles, lines, leading)}\n\n{_errors(paper)}"


def to_csv(table: Table) -> str:
    """Return one line per row, with mean and deviation of each column, scaled as in the titles."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ["where", "model", "method", "option", "value", "seeds"]
    titles = [csv_cell(column.title) for column in table.columns]
    writer.writerow(head + [word for title in titles for word in (title, f"{title} sd")])
    for row in table.rows:
        option, value = row.variant.varied or ("", "")
        names = (row.source, row.variant.model, row.variant.method, option, value)
        line = [*map(csv_cell, names), row.seeds or ""]
        for column in table.columns:
            cell, printed = row.cells.get(column.key), row.printed.get(column.key)
            if printed:
                line += [printed.mean, "" if printed.sd is None else printed.sd]
            elif cell:
                sd = "" if cell.sd is None else f"{cell.sd * column.scale:.6g}"
                line += [f"{cell.mean * column.scale:.6g}", sd]
            else:
                line += ["", ""]
        writer.writerow(line)
    return stream.getvalue()


def to_latex(table: Table) -> str:
    """Return a booktabs tabular to put into a table environment; needs \\usepackage{booktabs}."""
    found, leading = marks(table), _leading(table.rows)
    marked = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", None: "{}"}
    lines = [r"\begin{tabular}{" + "l" * len(leading) + "r" * len(table.columns) + "}", r"\toprule"]
    lines += [" & ".join(latex(title) for title in _titles(table)) + r" \\", r"\midrule"]
    before = None
    for number, row in enumerate(table.rows):
        if before not in (None, row.variant.model):
            lines.append(r"\midrule")
        before = row.variant.model
        cells = [latex(of(row)) for _, of in leading]
        cells += [marked[found.get((number, key))].format(latex(text)) for key, text in _texts(table, row).items()]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    said = [table.experiment.title, *filter(None, notes(table).split(". "))]
    return "\n".join([*map(latex_comment, said), *lines]) + "\n"


RENDER = {"markdown": to_markdown, "csv": to_csv, "latex": to_latex}
