"""The figure of an experiment on given texts: the differences of its table, and beside every score of bias what the models can do at all."""

from collections.abc import Callable, Sequence

from eval.harness.statistics import mean_sd

from ...canvas import Bars, Estimate, Section
from ..matrix import Experiment
from ..results import Result
from ..tables.columns import Unit
from ..tables.given_texts import Difference, by_method, differences, moves, unable, units_of

CAPTION = (
    "Error bars: ± half of the 95% interval, paired by item and by seed. “No ability”: a model whose score says nothing about bias is not drawn. "
    "Held-out loss: of the texts beside every score of bias; a model that predicts nothing has no bias to show."
)
HELD_OUT = "held-out loss,\nnats per token"


def sections(experiment: Experiment, results: Sequence[Result]) -> list[Section]:
    """Return one section for each model that others are compared with; a check of sensitivity has one in all."""
    if experiment.stereotypes:
        made = [each for three in moves(experiment, results) for each in three]
        return _section("What moves the scores?", made, results, lambda each: f"{each.method} − {each.other}")
    made, found = differences(experiment, results), []
    for other in dict.fromkeys(each.other for each in made):
        some = [each for each in made if each.other == other]
        found += _section(f"{experiment.title}: minus {other}", some, results, lambda each: each.method)
    return found


def _section(
    heading: str, made: Sequence[Difference], results: Sequence[Result], name_of: Callable[[Difference], str]
) -> list[Section]:
    """Return the section of some differences, a panel for each column and one for the held-out loss; [] without any."""
    units, without = units_of(results), unable(results)
    panels = []
    for column in dict.fromkeys(each.column for each in made):
        rows = [
            (name_of(each), _estimate(each, units[column], {(column, each.method), (column, each.other)} & {*without}))
            for each in made
            if each.column == column
        ]
        panels.append(Bars(f"{column},\n{_words(units[column])}", rows))
    losses = _held_out(results)
    pairs = dict.fromkeys((name_of(each), each.method, each.other) for each in made)
    rows = [
        (name, Estimate(change, text=f"{change:+.3f}"))
        for name, method, other in pairs
        if method in losses and other in losses
        for change in [losses[method] - losses[other]]
    ]
    panels += [Bars(HELD_OUT, rows)] if rows else []
    return [Section(heading, CAPTION, panels)] if panels else []


def _words(unit: Unit) -> str:
    return "points" if unit.name == "%" else unit.name


def _estimate(made: Difference, unit: Unit, cannot: bool) -> Estimate:
    if cannot:
        return Estimate(0.0, text="no ability")
    half = unit.scale * (made.interval[1] - made.interval[0]) / 2
    return Estimate(
        unit.scale * made.difference,
        half,
        text=f"{unit.scale * made.difference:+.{unit.digits}f} ± {half:.{unit.digits}f}",
    )


def _held_out(results: Sequence[Result]) -> dict[str, float]:
    """Return {method: its mean loss on held-out texts, over seeds}; a method without a score of bias is left out."""
    found = {}
    for method, some in by_method(results).items():
        each = [score.ability["held_out_loss"] for result in some for score in result.scores.values() if score.ability]
        if each:
            found[method] = mean_sd(each)[0]
    return found
