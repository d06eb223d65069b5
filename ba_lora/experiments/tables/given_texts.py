"""The tables of an experiment on given texts: each score beside what the model can do at all, and the differences between models.

Differences are paired by item, and by seed where both models have seeds; the base has none. Over several seeds intervals and p are of
one test with items and seeds as crossed random effects (eval.harness.statistics.crossed_test): a t-test over two or three seeds can
hardly decide anything. With one seed both are over items alone, so they are about these models, not about their methods.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.choices.ability import UNABLE
from eval.harness.paired import difference_of
from eval.harness.statistics import (
    crossed_test,
    holm,
    is_apart,
    mean_sd,
    verdict,
)

from ...files import atomic_write
from ...texts import csv_cell, markdown
from ..matrix import Experiment
from ..results import Result
from .columns import OF_GIVEN_TEXTS, PERCENT, Unit
from .formats import EMPTY, p_text, rates_of
from .parts import Part, to_markdown

BASE = "base"
FILES = {"markdown": "table.md", "csv": "table.csv"}
SCORES = ("evaluation", "method", "seeds", "score", "able", "own ability", "held-out loss", "word order")
DIFFERENCES = (
    *("evaluation", "method − other", "seeds", "items", "other", "method", "difference", "95 % interval", "p"),
    *("p after Holm", "verdict"),
)
MOVES = (
    *("benchmark", "items", "before", "after pro", "after anti", "pro − anti", "95 % interval", "p", "p after Holm"),
    *("pro − before", "anti − before", "verdict"),
)
SCORES_NOTE = (
    "Score: mean ± standard deviation over seeds. No score of bias stands alone: able is the verdict on every seed's model, with the "
    "benchmark's own measure of ability in %, the loss on held-out texts in nats a token, and the share of them, in %, whose words the model "
    "wants in their order. A model without ability shows no bias because it shows nothing."
)
DIFFERENCES_NOTE = (
    "Paired by item and by seed: the interval and p come from a t-test with items and seeds as crossed random effects. With one seed the interval "
    "is a bootstrap over items, and p is McNemar's or of sign flips, so they say whether these models differ, not whether their methods do. "
    "Holm corrects for all rows of the table. Less, more: the 95 % interval excludes 0, the corrected p is below 0.05, and the difference is "
    "at least the margin, if the file has one. Equivalent: the 90 % interval lies within the margin. Undecided: none of these, which does "
    "not mean that there is no difference. Means are over the items that both models have. They can differ from the scores: StereoSet's is a "
    "mean over target terms."
)
MOVES_NOTE = (
    "Pro and anti are the base tuned on sentences with and against the stereotype, from the half of each set that is not scored. Moves: the "
    "95 % interval of pro − anti lies above 0 and its corrected p is below 0.05; the wrong way: it lies below. Insensitive at this size: "
    "neither, so that a null result of this benchmark means nothing for such a model and so few steps."
)
MOVED, WRONG, INSENSITIVE = "moves", "moves the wrong way", "insensitive at this size"


@dataclass(frozen=True)
class Difference:
    """`method` minus `other` in one column, in the score's unit. means: of both over `items`; narrow: the 90% interval."""

    column: str
    method: str
    other: str
    seeds: int
    items: int
    means: tuple[float, float]  # other, method
    difference: float
    interval: tuple[float, float]
    narrow: tuple[float, float]
    p: float | None
    corrected: float | None = None

    def verdict(self, margin: float | None) -> str:
        return verdict(self.difference, self.interval, self.corrected, margin, self.narrow)


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results by the name of their row, in the order of the table."""
    found: dict[str, list[Result]] = {}
    for result in results:
        variant = result.variant
        name = variant.method + (f", {' = '.join(variant.varied)}" if variant.varied else "")
        found.setdefault(name, []).append(result)
    return found


def difference(column: str, method: str, other: str, results: dict[str, list[Result]]) -> Difference | None:
    """Compare two rows in one column; None if they share no seed or fewer than two items, or a score is without its items."""
    sides = [
        {r.seed: r.scores[column].items for r in results.get(name, []) if column in r.scores}
        for name in (method, other)
    ]
    ours, theirs = sides
    seeds = sorted(seed for seed in ours if seed in theirs or None in theirs)
    if not seeds or any(items is None for side in sides for items in side.values()):
        return None
    pair = np.stack([ours[seed] for seed in seeds]), np.stack([theirs.get(seed, theirs.get(None)) for seed in seeds])
    there = ~np.isnan(np.stack(pair)).any((0, 1))
    a, b = (side[:, there] for side in pair)  # (seeds, items)
    if a.shape[1] < 2:
        return None
    means = float(b.mean()), float(a.mean())
    counts = len(seeds), int(there.sum())
    if len(seeds) == 1:
        found = difference_of(a[0], b[0])
        return Difference(column, method, other, *counts, means, found.mean, found.interval, found.inner, found.p)
    wide, narrow, p = crossed_test(a - b)
    return Difference(column, method, other, *counts, means, wide.mean, wide.ends, narrow.ends, p)


def differences(experiment: Experiment, results: Sequence[Result]) -> list[Difference]:
    """Every method against the base, and against the reference, in every column; p corrected over all of them."""
    rows, made = by_method(results), []
    for column in experiment.columns:
        for other in (BASE, experiment.reference):
            for method in rows:
                if other in rows and method not in (BASE, other):
                    made.append(difference(column, method, other, rows))
    made = [each for each in made if each]
    return [replace(each, corrected=p) for each, p in zip(made, holm([each.p for each in made]), strict=True)]


def moves(experiment: Experiment, results: Sequence[Result]) -> list[tuple[Difference, Difference, Difference]]:
    """(pro − anti, pro − base, anti − base) of every column that has all three; p of the first corrected over the columns."""
    rows, pro, anti = by_method(results), experiment.stereotypes["pro"], experiment.stereotypes["anti"]
    pairs = (pro, anti), (pro, BASE), (anti, BASE)
    made = [tuple(difference(column, *pair, rows) for pair in pairs) for column in experiment.columns]
    made = [three for three in made if all(three)]
    corrected = holm([three[0].p for three in made])
    return [(replace(three[0], corrected=p), *three[1:]) for three, p in zip(made, corrected, strict=True)]


def verdict_of_move(made: Difference) -> str:
    """What pro − anti says about a benchmark."""
    if not is_apart(made.interval, made.corrected):
        return INSENSITIVE
    return MOVED if made.difference > 0 else WRONG


def page(experiment: Experiment, results: Sequence[Result]) -> list[Part]:
    """Return the tables of the results: scores, and what moves or differs; [] if nothing was measured."""
    return _parts(experiment, results, _compared(experiment, results)) if results else []


def tables(experiment: Experiment, results: Sequence[Result]) -> dict[str, str]:
    """Return {"markdown": text, "csv": text} of the results; the second has the differences alone."""
    title = f"# {markdown(experiment.title)}\n\n"
    if not results:
        return {"markdown": f"{title}Nothing was measured.\n", "csv": ""}
    compared = _compared(experiment, results)
    text = title + to_markdown(_parts(experiment, results, compared))
    return {
        "markdown": text,
        "csv": _csv([each for group in compared for each in group], units_of(results), abilities(results)),
    }


def _compared(experiment: Experiment, results: Sequence[Result]) -> list[tuple[Difference, ...]]:
    """What `moves` returns for a check of sensitivity, else each of the differences alone."""
    return (
        moves(experiment, results) if experiment.stereotypes else [(each,) for each in differences(experiment, results)]
    )


def _parts(experiment: Experiment, results: Sequence[Result], compared: list[tuple[Difference, ...]]) -> list[Part]:
    units = units_of(results)
    parts = [Part("Scores", SCORES, _score_lines(experiment, results, units), 2, [SCORES_NOTE])]
    if compared and experiment.stereotypes:
        lines = [[three[0].column, *_move_texts(three, units)] for three in compared]
        parts.append(Part("Does a score move?", MOVES, lines, 1, [MOVES_NOTE, *_without_ability(results)]))
    elif compared:
        made = [each for (each,) in compared]
        lines = [_difference_line(each, units[each.column], _margin(experiment, each, units)) for each in made]
        answers = [*_answers(experiment, made, units, unable(results)), *_without_ability(results)]
        parts.append(Part("Differences", DIFFERENCES, lines, 2, [DIFFERENCES_NOTE, *answers]))
    chosen = {name: some[0].training for name, some in by_method(results).items() if some[0].training.get("tuned")}
    if experiment.tuning and chosen:
        rates = ", ".join(f"{name} {training['learning_rate']:g}" for name, training in chosen.items())
        note = (
            f"Learning rates: {rates}. They are the best of {rates_of(experiment.tuning)}, by the held-out loss of one run each with seed "
            f"{experiment.tuning['seed']}; the intervals do not account for this choice."
        )
        parts.append(Part("", notes=[note]))
    return [*parts, Part("", notes=[experiment.note])] if experiment.note else parts


def write_tables(experiment: Experiment, results: Sequence[Result], folder: Path) -> list[Path]:
    """Write table.md and table.csv into `folder`; return the files."""
    made = tables(experiment, results)
    for kind, name in FILES.items():
        with atomic_write(folder / name) as stream:
            stream.write(made[kind])
    return [folder / name for name in FILES.values()]


def units_of(results: Sequence[Result]) -> dict[str, Unit]:
    """The unit of each column, by its metric."""
    metrics = {name: score.metric for result in results for name, score in result.scores.items()}
    return {name: OF_GIVEN_TEXTS.get(metric, PERCENT) for name, metric in metrics.items()}


def _margin(experiment: Experiment, made: Difference, units: dict[str, Unit]) -> float | None:
    """The margin of a column in the score's own unit; the file gives it in the unit of the table."""
    margin = experiment.margins.get(made.column)
    return None if margin is None else margin / units[made.column].scale


def _score_lines(experiment: Experiment, results: Sequence[Result], units: dict[str, Unit]) -> list[list[str]]:
    lines, able = [], abilities(results)
    for column in experiment.columns:
        for method, some in by_method(results).items():
            there = [result.scores[column] for result in some if column in result.scores]
            there = [score for score in there if score.score is not None]
            if there:
                texts = _spread([score.score for score in there], units[column].scale, units[column].digits)
                score = f"{texts} {units[column].name}"
                lines.append([column, method, str(len(there)), score, *_ability(there, able.get((column, method)))])
    return lines


def _ability(scores: Sequence, words: str | None) -> list[str]:
    if words is None:
        return [EMPTY] * 4
    found = [score.ability for score in scores if score.ability]
    own = [each["own"] for each in found if each.get("own") is not None]
    return [
        words,
        _spread(own, 100, 1) if own else EMPTY,
        _spread([each["held_out_loss"] for each in found], 1, 3),
        _spread([each["word_order"] for each in found], 100, 1),
    ]


def _spread(values: Sequence[float], scale: float, digits: int) -> str:
    mean, sd = mean_sd([value * scale for value in values])
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def _signed(value: float, unit: Unit) -> str:
    return f"{value * unit.scale:+.{unit.digits}f}"


def _ends(ends: tuple[float, float], unit: Unit) -> str:
    return f"[{', '.join(_signed(end, unit) for end in ends)}]"


def _means(made: Difference, unit: Unit) -> list[str]:
    return [f"{mean * unit.scale:.{unit.digits}f}" for mean in made.means]


def _difference_line(made: Difference, unit: Unit, margin: float | None) -> list[str]:
    names = made.column, f"{made.method} − {made.other}"
    numbers = [str(made.seeds), str(made.items), *_means(made, unit), _signed(made.difference, unit)]
    p = [p_text(value) for value in (made.p, made.corrected)]
    return [*names, *numbers, _ends(made.interval, unit), *p, made.verdict(margin)]


def _move_texts(three: tuple[Difference, Difference, Difference], units: dict[str, Unit]) -> list[str]:
    both, pro, anti = three
    unit = units[both.column]
    before = f"{pro.means[0] * unit.scale:.{unit.digits}f}"
    after = _means(both, unit)[::-1]
    p = [p_text(value) for value in (both.p, both.corrected)]
    alone = [f"{_signed(each.difference, unit)} {_ends(each.interval, unit)}" for each in (pro, anti)]
    return [
        *(str(both.items), before, *after, _signed(both.difference, unit), _ends(both.interval, unit), *p),
        *(*alone, verdict_of_move(both)),
    ]


def abilities(results: Sequence[Result]) -> dict[tuple[str, str], str]:
    """{(column, method): "able", "no ability", or both where seeds differ} of every score of bias."""
    found: dict[tuple[str, str], set[str]] = {}
    for method, some in by_method(results).items():
        for result in some:
            for column, score in result.scores.items():
                if score.ability:
                    found.setdefault((column, method), set()).add(score.ability["verdict"])
    return {where: " and ".join(sorted(words)) for where, words in found.items()}


def unable(results: Sequence[Result]) -> list[tuple[str, str]]:
    """(column, method) of each score of a model that has no ability there, with any seed."""
    return [where for where, words in abilities(results).items() if UNABLE in words]


def _answers(
    experiment: Experiment, made: Sequence[Difference], units: dict[str, Unit], without: list[tuple[str, str]]
) -> list[str]:
    """One sentence for each question. without: what `unable` found; these scores say nothing about bias."""
    apart = [each for each in made if each.verdict(_margin(experiment, each, units)) in ("less", "more")]
    said = [each for each in apart if not {(each.column, each.method), (each.column, each.other)} & {*without}]
    biased = [each for each in said if units[each.column].better is None and each.other == BASE]
    between = [each for each in said if each.other != BASE]
    none = "None was shown to differ." if any(each.other != BASE for each in made) else "None was compared."
    significant = [each for each in made if is_apart(each.interval, each.corrected)]
    small = len(significant) - len(apart)
    below = f", {small} of them below the margin" if small else ""
    return [
        f"Do scores of bias change by tuning? {_listed(biased, 'None was shown to change.')}",
        f"Does a method differ from {experiment.reference or 'another'}? {_listed(between, none)}",
        f"Significant after correction: {len(significant)} of {len(made)} differences{below}.",
    ]


def _without_ability(results: Sequence[Result]) -> list[str]:
    without = unable(results)
    return [f"No ability, so no score of bias: {', '.join(map(' of '.join, without))}."] if without else []


def _listed(made: Sequence[Difference], none: str) -> str:
    words = [f"{each.column} of {each.method} ({'more' if each.difference > 0 else 'less'})" for each in made]
    return f"Yes: {', '.join(words)}." if words else none


def _csv(made: Sequence[Difference], units: dict[str, Unit], able: dict[tuple[str, str], str]) -> str:
    """One line per difference, in the unit of the table. able: what `abilities` found."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            *(
                "evaluation",
                "unit",
                "method",
                "other",
                "seeds",
                "items",
                "mean of other",
                "mean of method",
                "difference",
            ),
            *("low", "high", "p", "p after Holm", "ability of other", "ability of method"),
        ]
    )
    for each in made:
        unit = units[each.column]
        numbers = [value * unit.scale for value in (*each.means, each.difference, *each.interval)]
        p = ["" if value is None else f"{value:.6g}" for value in (each.p, each.corrected)]
        can = [able.get((each.column, method), "") for method in (each.other, each.method)]
        names = csv_cell(each.column), unit.name, csv_cell(each.method), csv_cell(each.other)
        writer.writerow([*names, each.seeds, each.items, *(f"{value:.6g}" for value in numbers), *p, *can])
    return stream.getvalue()
