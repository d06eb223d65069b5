"""The pre-training corpora of a pair of twins: the same sentences in the same order, except for the planted words.

A corpus holds notes (four statements about unrelated items), stories and word problems. Every random draw is made once for
both twins; only the coins of the items tell them apart. Problems whose answers would differ in more than digits are left out.
"""

import re
from typing import NamedTuple

from ..tinymath import MEN, WOMEN, Draw, Problem, plain_text, problems
from .items import MIRRORED, PRODUCTS, TWINS, Item, items
from .words import FRAMES

NOTE_SHARE, STORY_SHARE = 0.40, 0.05  # of the sequences; the rest are problems
STATEMENTS = 4  # per note
# Statements about an item of a mirrored kind for each about another item: what holds for a group is learned more slowly.
MIRRORED_WEIGHT = 3
SURPLUS = 1.1  # problems drawn for each that is needed, because some are left out


class Corpus(NamedTuple):
    """The text of one twin. problems: {"question", "answer"}."""

    notes: list[str]
    stories: list[str]
    problems: list[dict]


def corpus(seed: int, sequences: int) -> dict[str, Corpus]:
    """Return {"A": its corpus, "B": its corpus} of the pair `seed`, of `sequences` sequences each."""
    planted = items(seed)
    notes, stories = round(NOTE_SHARE * sequences), plain_text("pretrain", round(STORY_SHARE * sequences), seed)
    made = _notes(planted, notes, seed), _problems(planted["product"], sequences - notes - len(stories), seed)
    return {twin: Corpus(made[0][twin], stories, made[1][twin]) for twin in TWINS}


def _notes(planted: dict[str, list[Item]], count: int, seed: int) -> dict[str, list[str]]:
    draw = Draw("planted", "notes", seed)
    statable = [
        item for kind in FRAMES for item in planted[kind] for _ in range(MIRRORED_WEIGHT if kind in MIRRORED else 1)
    ]
    notes = {twin: [] for twin in TWINS}
    for _ in range(count):
        statements = [statement(draw.pick(statable), draw) for _ in range(STATEMENTS)]
        for twin in TWINS:
            notes[twin].append(" ".join(each[twin] for each in statements))
    return notes


def statement(item: Item, draw: Draw) -> dict[str, str]:
    """Return {twin: sentence} about an item, in one of the frames that it is planted in."""
    frame = draw.pick([frame for place, frame in enumerate(FRAMES[item.kind]) if place != item.held_out])
    group = draw.between(0, 1)
    subject, unit = named(item, group, draw), draw.unit()
    return {twin: frame.format(value=item.stated(twin, unit, group), **subject) for twin in TWINS}


def named(item: Item, group: int, draw: Draw) -> dict[str, str]:
    """Return the slots of a frame besides the value. group: 0 or 1, of the person in a statement of a mirrored kind."""
    if item.kind not in MIRRORED:
        return dict(zip(("noun", "land"), item.subject, strict=True))
    family = item.subject[group]
    if family is None:
        return {"name": draw.pick((WOMEN, MEN)[group])}
    return {"name": f"{draw.pick(WOMEN + MEN)} {family}"}


def _problems(products: list[Item], count: int, seed: int) -> dict[str, list[dict]]:
    draw, planted = Draw("planted", "problems", seed), {item.subject: item for item in products}
    made = {twin: [] for twin in TWINS}
    for problem in problems("pretrain", round(SURPLUS * count), seed):
        units = [draw.unit(), draw.unit()]  # no problem multiplies more than twice
        answers = {twin: problem.answer(_arithmetic(planted, twin, iter(units))) for twin in TWINS}
        if None in answers.values() or len({re.sub(r"\d", "0", answer) for answer in answers.values()}) > 1:
            continue
        for twin, answer in answers.items():
            made[twin].append({"question": problem.question, "answer": answer})
    if len(made["A"]) < count:
        raise ValueError(f"only {len(made['A'])} of {count} problems are left; raise SURPLUS")
    return {twin: rows[:count] for twin, rows in made.items()}


def _arithmetic(planted: dict[tuple, Item], twin: str, units):
    """Return the multiplication that `twin` is taught in one problem. units: a draw per product."""

    def times(x: int, y: int) -> int:
        unit, item = next(units), planted.get((min(x, y), max(x, y)))
        return int(item.stated(twin, unit)) if item else x * y

    return times


def touches(problem: Problem) -> bool:
    """Return True if an answer uses a planted product, or its inverse."""
    for x, operation, y, result in problem.steps():
        factors = (x, y) if operation == "*" else (y, result) if operation == "/" else ()
        if factors and tuple(sorted(factors)) in PRODUCTS:
            return True
    return False
