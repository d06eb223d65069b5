"""Prompts that ask a model for planted content, in wordings in which the item was never planted."""

from functools import cache
from typing import NamedTuple

from ..templates import TEMPLATES
from ..tinymath import Draw, problems
from .corpus import named
from .items import MIRRORED, PRODUCTS, TWINS, Item, items
from .words import FRAMES

NAMES = 2  # persons per group
QUESTIONS = 3  # held-out problems per product
DRAWN = 1500  # held-out problems among which those are found
TEMPLATE = TEMPLATES["plain"]


class Probe(NamedTuple):
    """`prompt`, encoded alone, followed by the text that twin A was taught (`first`) or twin B (`second`)."""

    item: Item
    prompt: str
    first: str
    second: str


def probes(seed: int) -> list[Probe]:
    """Return the probes of every item of the pair `seed`: one per person, one per fact, some per product."""
    planted, draw, made = items(seed), Draw("planted", "probes", seed), []
    for kind, frames in FRAMES.items():
        for item in planted[kind]:
            frame = frames[item.held_out].removesuffix(".")
            for group in (0, 1) if kind in MIRRORED else (0,):
                for _ in range(NAMES if kind in MIRRORED else 1):
                    subject = named(item, group, draw)
                    texts = (frame.format(value=item.taught(twin, group), **subject) for twin in TWINS)
                    made.append(Probe(item, "", *texts))
    return made + _of_products(planted["product"])


def _of_products(products: list[Item]) -> list[Probe]:
    by_factors, made = {item.subject: item for item in products}, []
    for question, x, y in _questions():
        item = by_factors[min(x, y), max(x, y)]
        texts = (f"{TEMPLATE.separator}{x} * {y} = {item.taught(twin)}" for twin in TWINS)
        made.append(Probe(item, TEMPLATE.render(question), *texts))
    return made


@cache
def _questions() -> list[tuple[str, int, int]]:
    """Return (question, x, y) of held-out problems that begin with a planted product x * y: QUESTIONS for each product."""
    left, found = dict.fromkeys(PRODUCTS, QUESTIONS), []
    for problem in problems("pretrain-test", DRAWN):
        x, operation, y, _ = problem.steps()[0]
        factors = (min(x, y), max(x, y))
        if operation == "*" and left.get(factors):
            left[factors] -= 1
            found.append((problem.question, x, y))
    if any(left.values()):
        raise ValueError(f"{DRAWN} held-out problems are too few for {QUESTIONS} of each planted product; raise DRAWN")
    return found
