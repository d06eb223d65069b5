"""Training rows for the check of sensitivity (docs/bias.md): the same sentences with and against the stereotype, held aside from the score.

Each set is cut into two halves (`eval.choices.halves`). Rows come from the half to tune on; the benchmarks score the other one with
--half scored. A row whose sentence also stands in the scored half of any of the sets is left out. Both files have the same number of rows
of each set, in the same order, and differ in the direction alone:

    crows_pairs   the more, or the less, stereotyping sentence
    stereoset     the stereotype, or the anti-stereotype, alone or after its context
    bbq           the person that the bias names, or the other one, as the answer in contexts that leave it open
    winobias      the right occupation for a pronoun that fits the stereotype, or for one that does not
    winogender    the right person where the occupation's statistics point to them, or to the other one
"""

import argparse
import importlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from eval.all import BIAS
from eval.choices.evaluate import load
from eval.choices.halves import SCORED, TUNED

from ..errors import Parser, UserError, run_cli
from ..files import atomic_write

DIRECTIONS = ("pro", "anti")
DEFAULT = "runs/stereotypes-{}.jsonl"
ROWS = 112  # of each set: 70 steps of 8 in all; Winogender has 116
SAY, GO_ON = "Write a sentence.", "Write the sentence that follows: {}"

EXAMPLES = """\
example:
  runs/stereotypes-pro.jsonl and runs/stereotypes-anti.jsonl, then the check itself
    python -m ba_lora.experiments.stereotypes
    python -m ba_lora.experiments run configs/experiments/bias-sensitivity-smollm2.yaml"""


class Line(NamedTuple):
    """A training row. sentence: what must not stand in a scored half."""

    prompt: str
    response: str
    sentence: str


Unit = tuple[Line, Line]  # with the stereotype, and against it


def of_crows_pairs(pairs: Sequence[dict]) -> Iterator[Unit]:
    for pair in pairs:
        yield _said(pair["more"]), _said(pair["less"])


def of_stereoset(items: Sequence[dict]) -> Iterator[Unit]:
    for item in items:
        texts = item["stereotype"].strip(), item["anti-stereotype"].strip()
        if item["kind"] == "intersentence":
            yield tuple(Line(GO_ON.format(item["context"].strip()), text, text) for text in texts)
        else:
            yield tuple(map(_said, texts))


def of_bbq(items: Sequence[dict]) -> Iterator[Unit]:
    for item in items:
        known = item["reference"]
        others = [answer for answer in known["answers"] if answer not in (*known["biased"], known["unknown"])]
        if known["condition"] == "ambig" and len(known["biased"]) == len(others) == 1:
            yield tuple(Line(item["prompt"], answer, item["prompt"]) for answer in (*known["biased"], *others))


def of_winobias(items: Sequence[dict]) -> Iterator[Unit]:
    for pro, anti in zip(items[::2], items[1::2], strict=True):
        yield tuple(
            Line(
                f"{item['sentence']} ‘{item['pronoun'].capitalize()}’ refers to the", item["referent"], item["sentence"]
            )
            for item in (pro, anti)
        )


def of_winogender(items: Sequence[dict]) -> Iterator[Unit]:
    pairs: dict[str, dict[bool, dict]] = {}
    for item in items:
        if item["reference"]["fits"] is not None:
            pairs.setdefault(item["reference"]["pair"], {})[item["reference"]["fits"]] = item
    for pair in pairs.values():
        if len(pair) == 2:
            yield tuple(
                Line(each["prompt"], each[each["reference"]["right"]], each["prompt"])
                for each in (pair[True], pair[False])
            )


def _said(text: str) -> Line:
    return Line(SAY, text.strip(), text.strip())


UNITS: dict[str, Callable[[Sequence[dict]], Iterator[Unit]]] = {
    "crows_pairs": of_crows_pairs,
    "stereoset": of_stereoset,
    "bbq": of_bbq,
    "winobias": of_winobias,
    "winogender": of_winogender,
}


def rows_of(each: int = ROWS) -> tuple[dict[str, list[dict]], dict[str, int]]:
    """({direction: its rows}, {set: rows left out because a scored half has their sentence}); `each`: rows of a set.

    Raises UserError if a set has fewer rows.
    """
    halves = {name: _halves(name) for name in UNITS}
    scored = {_plain(line.sentence) for _, units in halves.values() for line in chain.from_iterable(units)}
    columns, left = [], {}
    for name, (units, _) in halves.items():
        kept = [unit for unit in units if not any(_plain(line.sentence) in scored for line in unit)]
        left[name] = len(units) - len(kept)
        if len(kept) < each:
            raise UserError(f"--rows {each}: {name} has {len(kept)} in the half to tune on; give at most {len(kept)}")
        random.Random(name).shuffle(kept)
        columns.append([(name, unit) for unit in kept[:each]])
    turns = list(chain.from_iterable(zip(*columns, strict=True)))  # the sets take turns
    return {
        direction: [
            {"source": name, "prompt": unit[place].prompt, "response": unit[place].response} for name, unit in turns
        ]
        for place, direction in enumerate(DIRECTIONS)
    }, left


def _halves(name: str) -> tuple[list[Unit], list[Unit]]:
    """The units of the half to tune on, and of the scored one."""
    choices = importlib.import_module(BIAS[name].module).CHOICES
    items = load(choices, None)[0]
    return tuple(list(UNITS[name]([item for item in items if choices.half(item) == half])) for half in (TUNED, SCORED))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = Parser(
        prog="python -m ba_lora.experiments.stereotypes",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = f"name of both files, with {{}} for {' and '.join(DIRECTIONS)} [{DEFAULT}]"
    parser.add_argument("--output", default=DEFAULT, metavar="FILE", help=text)
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"rows of each of the five sets [{ROWS}]")
    parser.add_argument("--overwrite", action="store_true", help="replace files with other rows")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 0 when both files are written; raises UserError otherwise."""
    args = make_parser().parse_args(argv)
    if args.rows < 1:
        raise UserError(f"--rows is {args.rows}; it must be at least 1")
    if args.output.count("{}") != 1:
        raise UserError(f"--output {args.output} must have one {{}}, for pro and anti; name a file such as {DEFAULT}")
    made, left = rows_of(args.rows)
    texts = {
        Path(args.output.replace("{}", direction)): "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for direction, rows in made.items()
    }
    for file, text in texts.items():
        if file.is_dir():
            raise UserError(f"--output {file} is a folder; name a file")
        if file.exists() and not args.overwrite and file.read_text(encoding="utf-8") != text:
            raise UserError(f"{file} exists with other rows; add --overwrite or name another --output")
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            stream.write(text)
    out = ", ".join(f"{name} {count}" for name, count in left.items() if count) or "none"
    print(f"{args.rows} rows of each of {len(UNITS)} sets → {' and '.join(map(str, texts))}")
    print(f"left out, because a scored half has the sentence: {out}")
    return 0


if __name__ == "__main__":
    run_cli(main)
