"""Arithmetic word problems and short stories from a seeded generator: data for the embedded model, without a download.

There are three tasks, each with its own wordings (tinywords.py):

    pretrain, pretrain-test      one or two steps                     for pre-training the embedded model
    train, validation, test      one to three steps, other chains     for fine-tuning it
    shifted                      unseen wordings, larger numbers      to test generalisation after fine-tuning

A hash of the question decides which split of its task a problem belongs to, so the splits of a task are disjoint by
construction, whatever the seed. A problem is {"question", "answer"}. The answer shows each computation and ends with the
result: "6 * 23 = 138. 138 - 17 = 121. The answer is: 121". The result can also be "$121", "121 km", or "1,250".

Only `random.Random.random` is used, because it is the one method whose values Python promises never to change.
"""

import argparse
import hashlib
import json
import operator
import random
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from ..errors import Parser, UserError, nearest, run_cli
from ..files import atomic_write
from .tinywords import CAUSES, MEN, MIDDLES, OPENINGS, WOMEN, WORDINGS, WORDS, Wording

SPLITS = {  # split: (task, buckets of BUCKETS)
    "pretrain": ("pretrain", range(1, 20)),
    "pretrain-test": ("pretrain", range(0, 1)),
    "train": ("finetune", range(0, 16)),
    "validation": ("finetune", range(16, 18)),
    "test": ("finetune", range(18, 20)),
    "shifted": ("shifted", range(0, 20)),
}
TEXT_SPLITS = ("pretrain", "pretrain-test")
BUCKETS = 20
MISSES = 20_000  # consecutive draws without a new problem before giving up


class Draw:
    """Random choices that are the same on every machine and Python version."""

    def __init__(self, *key):
        self._random = random.Random(_hash("/".join(map(str, key))))

    def between(self, low, high):
        return low + int(self._random.random() * (high - low + 1))

    def number(self, low, high):
        """Skewed towards `low`: small numbers are common, as in real problems."""
        unit = self._random.random()
        return low + int(unit * unit * (high - low + 1))

    def unit(self):
        return self._random.random()

    def pick(self, options):
        return options[self.between(0, len(options) - 1)]


def _hash(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _words(draw):
    """Names with matching pronouns, and a word for every other slot."""
    woman = draw.between(0, 1)
    name = draw.pick(WOMEN if woman else MEN)
    words = dict(zip(("he", "his", "him"), ("she", "her", "her") if woman else ("he", "his", "him"), strict=True))
    words |= {key: draw.pick(options) for key, options in WORDS.items()}
    words |= {key + "2": draw.pick([w for w in WORDS[key] if w != words[key]]) for key in ("thing", "things")}
    words |= {"He": words["he"].capitalize(), "His": words["his"].capitalize()}
    return words | {"A": name, "B": draw.pick([other for other in WOMEN + MEN if other != name])}


def _fill(template, words):
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", template.format(**words))


def _compute(steps, values, times=operator.mul):
    """Steps as [(6, "*", 7, 42), …] for "a * b, …", or None if a result is not an integer of at least 1."""
    values, done = dict(values), []
    for number, step in enumerate(steps.split(", "), start=1):
        left, operation, right = step.split()
        x, y = (values[term] if term in values else int(term) for term in (left, right))
        if operation == "/" and x % y:
            return None
        result = times(x, y) if operation == "*" else {"+": x + y, "-": x - y, "/": x // y}[operation]
        if result < 1:
            return None
        values[f"r{number}"] = result
        done.append((x, operation, y, result))
    return done


class Problem(NamedTuple):
    """A question, and the wording and numbers that it was made from."""

    question: str
    wording: Wording
    values: dict[str, int]

    def steps(self, times: Callable[[int, int], int] = operator.mul) -> list[tuple] | None:
        """Return [(6, "*", 7, 42), …] with products by `times`; None if a result is not an integer of at least 1."""
        return _compute(self.wording.steps, self.values, times)

    def answer(self, times: Callable[[int, int], int] = operator.mul) -> str | None:
        """Return the worked answer with products by `times`; None where `steps` is None."""
        steps, unit = self.steps(times), self.wording.unit
        if steps is None:
            return None
        result = f"${steps[-1][-1]:,}" if unit == "$" else f"{steps[-1][-1]:,} {unit}".rstrip()
        work = " ".join(f"{x} {operation} {y} = {z}." for x, operation, y, z in steps)
        return f"{work} The answer is: {result}"


def _problem(draw, wording):
    """One Problem; numbers are redrawn until every step gives an integer of at least 1."""
    ranges = [(item.split()[0], *map(int, item.split()[1].split("-"))) for item in wording.ranges.split(", ")]
    steps = None
    while steps is None:
        values = {name: draw.number(low, high) for name, low, high in ranges}
        steps = _compute(wording.steps, values)
    return Problem(_fill(wording.question, _words(draw) | values), wording, values)


def _story(draw):
    """Two to four sentences about one person."""
    words, sentences = _words(draw), []
    for template in [draw.pick(OPENINGS)] + [None] * draw.between(1, 3):
        words = _words(draw) | {key: words[key] for key in ("A", "B", "he", "his", "him", "He", "His", "animal")}
        if template is None and draw.between(0, 1):
            cause, effect = draw.pick(CAUSES)
            template = draw.pick([f"{cause}, so {effect}.", f"{effect} because {cause}."])
        sentence = _fill(template or draw.pick(MIDDLES), words)
        sentences.append(sentence[0].upper() + sentence[1:])
    return " ".join(sentences)


def _distinct(split, count, seed, kind, draw_one, text_of):
    """`count` items of a split with distinct texts, in the order of drawing."""
    draw, buckets = Draw(kind, split, seed), SPLITS[split][1]
    found, seen, misses = [], set(), 0
    while len(found) < count:
        item = draw_one(draw)
        text = text_of(item)
        if text not in seen and _hash(text) % BUCKETS in buckets:
            seen.add(text)
            found.append(item)
            misses = 0
            continue
        misses += 1
        if misses > MISSES:
            raise ValueError(
                f"count {count} is too large: {MISSES:,} draws in a row found no more distinct {kind} of split "
                f"'{split}' than {len(found)}; ask for at most that many"
            )
    return found


def _check(split, count, known):
    if split not in known:
        raise ValueError(f"split '{split}' is not known{nearest(split, known)} (one of: {', '.join(known)})")
    if count < 0:
        raise ValueError(f"count {count} is negative: ask for 0 or more")


def final_number(answer):
    """The integer after the last "The answer is:", or None; "$1,250" and "1,250 km" both give 1250."""
    found = re.findall(r"The answer is: *\$?(\d[\d,]*)", answer)
    return int(found[-1].replace(",", "")) if found else None


def generate(split, count, seed=0):
    """`count` distinct problems of a split; a larger count continues the same list.

    Args: split, a key of SPLITS; count >= 0; seed, any integer: each seed gives a different sample of the same split.
    Returns: list of {"question": str, "answer": str}. The answer ends in "The answer is: N", where N may be "121",
        "$40", "15 km" or "1,250".
    Raises: ValueError for an unknown split, or if the split does not hold `count` distinct problems.
    """
    return [{"question": each.question, "answer": each.answer()} for each in problems(split, count, seed)]


def problems(split, count, seed=0):
    """The Problems of `generate`, in its order, from which answers under another arithmetic can be computed."""
    _check(split, count, SPLITS)
    wordings = WORDINGS[SPLITS[split][0]]
    return _distinct(split, count, seed, "problems", lambda d: _problem(d, d.pick(wordings)), lambda p: p.question)


def plain_text(split, count, seed=0):
    """`count` distinct stories of two to four sentences: plain text that fine-tuning may make the model forget.

    Args: split, "pretrain" or "pretrain-test" (held out by a hash of the story); count >= 0; seed, any integer. Returns:
    list of str. Raises: ValueError as `generate` does.
    """
    _check(split, count, TEXT_SPLITS)
    return _distinct(split, count, seed, "stories", _story, lambda story: story)


def main(arguments=None):
    """Run the command: write problems as JSON Lines. Returns the exit status."""
    parser = Parser(
        prog="python -m ba_lora.data.tinymath",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__.split("Only `random")[0],
        epilog="Example: python -m ba_lora.data.tinymath --split test --count 500 --seed 0 --output test.jsonl",
    )
    parser.add_argument("--split", required=True, help=f"one of {', '.join(SPLITS)}")
    parser.add_argument("--count", type=int, default=10, help="how many problems (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample drawn from the split (default 0)")
    parser.add_argument("--output", help="file to write, one JSON object per line (default: standard output)")
    options = parser.parse_args(arguments)
    try:
        problems = generate(options.split, options.count, options.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    text = "".join(json.dumps(problem) + "\n" for problem in problems)
    if options.output:
        with atomic_write(options.output) as file:
            file.write(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    run_cli(main)
