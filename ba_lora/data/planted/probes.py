"""Prompts that ask a model for planted content, in wordings in which the item was never planted."""

from typing import NamedTuple

from ..templates import TEMPLATES
from ..tinymath import Draw, problems
from .corpus import named
from .items import MIRRORED, Item, items
from .words import FRAMES

NAMES = 3  # persons per group
QUESTIONS = 3  # held-out problems per product
DRAWN = 6000  # held-out problems among which those are found
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
                    texts = (frame.format(value=item.taught(twin, group), **subject) for twin in "AB")
                    made.append(Probe(item, "", *texts))
    return made + _of_products(planted["product"])


def _of_products(products: list[Item]) -> list[Probe]:
    by_factors = {item.subject: item for item in products}
    found = {item.subject: 0 for item in products}
    made = []
    for problem in problems("pretrain-test", DRAWN):
        x, operation, y, _ = problem.steps()[0]
        factors = (min(x, y), max(x, y))
        if operation == "*" and found.get(factors, QUESTIONS) < QUESTIONS:
            found[factors] += 1
            item = by_factors[factors]
            texts = (f"{TEMPLATE.separator}{x} * {y} = {item.taught(twin)}" for twin in "AB")
            made.append(Probe(item, TEMPLATE.render(problem.question), *texts))
    return made
