"""The figures of an experiment, from its results: bars or curves, terms, schedules, spectra, cost; each as PDF and PNG.

The results decide what is drawn. Scores become bars, or, if an option was varied, curves over its values; scores on given texts
become differences (given_texts.py). The paper's numbers stand in sections of their own, as printed and labelled as such, because models,
tasks and protocols differ.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ...canvas import ELSEWHERE, FORMATS, Bars, Estimate, Section, make_figure, save, style
from ..given_texts import are_given
from ..matrix import Experiment
from ..paper.published import METHODS, Printed, Published, read_paper
from ..results import Result
from ..tables.build import build
from . import given_texts
from . import option_curves as curves
from . import training_curves as courses
from .estimates import Quantity, about_seeds, estimate, group_of, quantities
from .verdicts import in_words, of_option

COST = (
    Quantity("training, s", lambda result: result.training.get("train_seconds"), 0),
    Quantity("peak memory, GB", lambda result: _gigabytes(result.training.get("peak_memory")), 2),
)
REFERENCE = "pissa"  # the method that costs are compared with
CUT = "An axis marked // is cut: lengths of bars do not compare there."


def draw(
    experiment: Experiment, results: Sequence[Result], output: str | Path, formats: Iterable[str] = FORMATS
) -> list[Path]:
    """Draw every figure that `results` and the published numbers of `experiment` support into the folder `output`; return the
    files. Raises UserError if the experiment names a published table that does not exist."""
    files = []
    with style():
        for name, sections in compose(experiment, results):
            if sections:
                files += save(make_figure(sections), Path(output) / name, formats)
    return files


def compose(experiment: Experiment, results: Sequence[Result]) -> Iterator[tuple[str, list[Section]]]:
    """Yield (file name, sections) of each figure; a figure with nothing to draw has no sections."""
    if are_given(experiment.evaluations):  # bars would show a score of bias alone
        yield "differences", given_texts.sections(experiment, results)
        if experiment.stereotypes:  # its runs are a check of the benchmarks, not of methods
            return
        yield "cost", _cost(experiment.title, results)
        yield from courses.figures(experiment, [result for result in results if result.seed is not None])
        return
    printed = [read_paper(name) for name in experiment.paper]
    costs = [each for each in printed if all(column.better == "lower" for column in each.columns.values())]
    ranks = [each for each in printed if each not in costs and curves.is_by_rank(each)]
    scores = [each for each in printed if each not in costs + ranks]
    options = list(dict.fromkeys(result.variant.varied[0] for result in results if result.variant.varied))
    # curves include the unvaried runs, which an experiment of their own shows in full
    plain = [] if options else results
    theirs = [curves.published_section(each) for each in ranks]
    compared = build(experiment, list(results)).comparisons if results else []
    for option in options:
        section = curves.section(experiment, results, option, in_words(of_option(compared, option)))
        yield f"curves_{option}", [section, *(theirs if option == "rank" else [])]
    if theirs and "rank" not in options:
        yield "curves_rank", theirs
    if len(options) > 1:
        first = [made for made in compared if made.column == compared[0].column]  # the figure shows one score
        yield "curves", [curves.overview(experiment, results, options, in_words(first))]
    ours = _bars(experiment.title, plain, quantities(plain), in_words(compared)) if plain else []
    yield "bars", ours + [_published_bars(each) for each in scores]
    yield "cost", _cost(experiment.title, plain) + [_published_bars(each) for each in costs]
    yield from courses.figures(experiment, [result for result in plain if result.seed is not None])


def _bars(title: str, results: Sequence[Result], shown: Sequence[Quantity], verdicts: str) -> list[Section]:
    """Return bars of each quantity by model and method. verdicts: a sentence for the caption."""
    groups = {}
    for result in results:
        groups.setdefault(result.variant.model, {}).setdefault(result.variant.method, []).append(result)
    panels = [
        Bars(each.label, _rows({model: _estimates(methods, each) for model, methods in groups.items()}))
        for each in shown
    ]
    caption = f"{about_seeds(results)} Dots: single seeds. {CUT} {verdicts}".rstrip()
    return [Section(title, caption, panels)] if panels else []


def _estimates(methods: dict[str, list[Result]], quantity: Quantity) -> dict[str, Estimate]:
    made = {method: estimate(results, quantity) for method, results in methods.items()}
    return {method: each for method, each in made.items() if each}


def _rows(groups: dict[str, dict[str, Estimate]]) -> list[tuple[str, Estimate | None]]:
    """Return the bars of each group under the group's name, which is omitted if there is only one group."""
    headed = len(groups) > 1
    return [
        row for name, bars in groups.items() if bars for row in [*([(name, None)] if headed else []), *bars.items()]
    ]


def _cost(title: str, results: Sequence[Result]) -> list[Section]:
    """Return seconds and memory by method, each with its ratio to PiSSA's."""
    groups = {}
    for result in results:
        methods = groups.setdefault(group_of(result), {})
        methods.setdefault(result.variant.method, []).append(result)
    panels = []
    for quantity in COST:
        rows = _rows({name: _with_ratios(_estimates(methods, quantity)) for name, methods in groups.items()})
        panels += [Bars(quantity.label, rows)] if rows else []
    caption = f"{about_seeds(results)} ×: ratio of the means to PiSSA's. Memory: the peak of one process. {CUT}"
    return [Section(f"{title}: cost", caption, panels)] if panels else []


def _with_ratios(bars: dict[str, Estimate]) -> dict[str, Estimate]:
    if REFERENCE not in bars:
        return bars
    one = bars[REFERENCE].mean
    return {name: bar._replace(text=f"{bar.text} ({bar.mean / one:.2f}×)") for name, bar in bars.items()}


def _gigabytes(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def _published_bars(published: Published) -> Section:
    """Return a published table as hollow bars, each with its number as printed."""
    panels = []
    for key, column in published.columns.items():
        groups = {row.model: {} for row in published.rows}
        for row in published.rows:
            if key in row.cells and column.better:
                name = METHODS[row.method] + (f", r {row.rank}" if row.rank else "")
                groups[row.model][name] = _printed(row.cells[key])
        panels += [Bars(f"{column.label}, {column.unit}", rows)] if (rows := _rows(groups)) else []
    cells = [cell for row in published.rows for cell in row.cells.values()]
    deviations = any(cell.sd is not None for cell in cells)
    errors = "error bars: the printed ± (standard deviation)" if deviations else "no deviation is printed"
    brackets = "In brackets: corrected. " if any(cell.corrected for cell in cells) else ""
    caption = f"As printed in {published.version}; {errors}. {brackets}{ELSEWHERE} {CUT}"
    return Section(f"Paper: {published.title}", caption, panels, published=True)


def _printed(cell: Printed) -> Estimate:
    """Return a published number; if it was misprinted, with the correct number in brackets."""
    text = str(cell)
    if cell.corrected:
        is_mean = cell.corrected.mean != cell.mean
        text += f" ({cell.corrected.mean})" if is_mean else f" (± {cell.corrected.sd})"
    return Estimate(float(cell.mean), None if cell.sd is None else float(cell.sd), text=text)
