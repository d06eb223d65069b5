"""Two evaluated models side by side: what both have scored, item by item, with the uncertainty of each difference.

For every benchmark that both folders hold under the same protocol and on the same data, and for every measure that scored.jsonl has of an item:
the mean difference, RUN_B minus RUN_A, over the items of both; its 95% interval by a bootstrap over items; the p of no difference (McNemar's exact
test for right or wrong, random signs otherwise), corrected for the number of rows after Holm; and a verdict:

    less, more     the 95% interval excludes 0, the corrected p is below 0.05, and the difference is at least the margin
    equivalent     the 90% interval lies within the margin (two one-sided tests at 5%)
    undecided      none of these was shown

A measure of bias stands beside what the model can do at all. Items are taken as independent, which those of one template are not.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ba_lora.errors import Parser, UserError, run_cli
from ba_lora.files import read_json_lines
from ba_lora.folders.checksums import read_record

from .choices.ability import UNABLE
from .harness.paired import Difference, difference_of
from .harness.scores import SCORE, SCORED
from .harness.statistics import holm, verdict

MARGIN = 0.02
SAME = (
    "protocol",
    "protocol_version",
    "data_hash",
    "half",
    "held_out_hash",
    "likelihood",
)  # of two scores that can be compared
NO_MEASURES = ("id", "sample", "turn", "tokens")

EXAMPLES = """\
RUN_A, RUN_B: a training run (its eval/), a folder of evaluations, or the folder of one evaluation.

example:
  a base model and a run that was trained on it
    python -m eval.compare runs/eval/BASE runs/ba-lora --margin 0.02"""


class Row(NamedTuple):
    """A row of the table. The means are over the items of both."""

    benchmark: str
    measure: str
    means: tuple[float, float]
    found: Difference


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = Parser(
        prog="python -m eval.compare",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_a", metavar="RUN_A", help="evaluations of one model")
    parser.add_argument("run_b", metavar="RUN_B", help="evaluations of the other")
    parser.add_argument(
        "--margin",
        type=float,
        default=MARGIN,
        help="differences below it do not matter, in the unit of a measure (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 0 when the table is printed; raises UserError otherwise."""
    args = make_parser().parse_args(argv)
    if not args.margin > 0 or math.isinf(args.margin):
        raise UserError(f"--margin is {args.margin:g}; it must be above 0 and finite")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; it must be at least 0")
    runs = [args.run_a, args.run_b]
    first, second = (evaluations(Path(run)) for run in runs)
    both = [name for name in first if name in second]
    if not both:
        raise UserError(
            f"{runs[0]} has the evaluations {', '.join(first)} and {runs[1]} {', '.join(second)}: none in common; evaluate both on "
            "the same benchmark"
        )
    rows, notes = [], []
    for name in both:
        if (reason := difference_of_settings(first[name][0], second[name][0])) is not None:
            notes.append(f"{name}: not compared, because {reason}")
            continue
        rows += rows_of(name, first[name][1], second[name][1], args.seed)
        for run, score in zip(runs, (first[name][0], second[name][0]), strict=True):
            if isinstance(score.get("ability"), dict) and score["ability"].get("verdict") == UNABLE:
                notes.append(f"{name}: {run} has no ability, so its score says nothing about bias")
    if not rows:
        raise UserError(f"nothing can be compared: {'; '.join(notes) or 'no measure of an item is in both'}")
    print(table(rows, args.margin, runs))
    for note in notes:
        print(f"\n{note}")
    return 0


def evaluations(place: Path) -> dict[str, tuple[dict, Path]]:
    """The scores in a folder: name → (score.json, its folder). Raises UserError if there is none."""
    found: dict[str, tuple[dict, Path]] = {}
    for pattern in (SCORE, f"*/{SCORE}", f"eval/*/{SCORE}"):
        for file in sorted(place.glob(pattern)):
            if not file.with_name(SCORED).is_file():  # of a classifier, which has predictions instead
                continue
            score = read_record(file, keys=("benchmark",))
            found.setdefault(f"{score['benchmark']} ({score.get('protocol', 'classification')})", (score, file.parent))
    if not found:
        raise UserError(
            f"{place} has no {SCORE} with a {SCORED} beside it; give a run that was evaluated, or a folder of evaluations"
        )
    return found


def difference_of_settings(first: dict, second: dict) -> str | None:
    """The reason why two scores cannot be compared; None if they can."""
    for name in SAME:
        if first.get(name) != second.get(name):
            return f"{name} is {first.get(name)} in one and {second.get(name)} in the other"
    return None


def rows_of(name: str, first: Path, second: Path, seed: int) -> Iterator[Row]:
    """One row for each measure that both have of an item."""
    ours, theirs = measures_in(second / SCORED), measures_in(first / SCORED)
    for measure in ours:
        keys = [key for key in ours[measure] if key in theirs.get(measure, {})]
        if keys:
            b, a = [ours[measure][key] for key in keys], [theirs[measure][key] for key in keys]
            yield Row(name, measure, (sum(a) / len(a), sum(b) / len(b)), difference_of(b, a, seed))


def measures_in(file: Path) -> dict[str, dict[str, float]]:
    """measure → id of an item → its value, the mean of its samples. A measure is a number, or true or false, of a line."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in read_json_lines(file, {"id": "a text or a number"}):
        for measure, value in line.items():
            if measure not in NO_MEASURES and isinstance(value, bool | int | float):
                found.setdefault(measure, {}).setdefault(str(line["id"]), []).append(float(value))
    return {
        measure: {key: sum(values) / len(values) for key, values in by_id.items()} for measure, by_id in found.items()
    }


def table(rows: list[Row], margin: float, runs: list[str]) -> str:
    """The table in Markdown, with the names of both runs above it."""
    corrected = holm([row.found.p for row in rows])
    lines = [
        f"A: {runs[0]}, B: {runs[1]}, margin {margin:g}, {len(rows)} rows corrected together",
        "",
        "| benchmark | measure | n | A | B | B − A | 95% interval | p | p (Holm) | test | B is |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- | --- |",
    ]
    for row, p in zip(rows, corrected, strict=True):
        found, (a, b) = row.found, row.means
        low, high = found.interval
        lines.append(
            f"| {row.benchmark} | {row.measure} | {found.n} | {a:.4f} | {b:.4f} | {found.mean:+.4f} | {low:+.4f} to {high:+.4f} "
            f"| {found.p:.2g} | {p:.2g} | {found.test} | {verdict(found.mean, found.interval, p, margin, found.inner)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
