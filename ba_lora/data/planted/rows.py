"""Fine-tuning and test rows around planted content, by the name "planted:SPLIT[:SEED]".

    neutral, neutral-validation, neutral-test     problems of the fine-tuning task that do not touch a planted product
    own, own-test                                 problems of the pre-training task that do not
    counter                                       neutral, with the truth stated in every tenth row
    replay                                        neutral, with a clean problem of the pre-training task in every tenth row

SEED picks the sample of a split; for `counter` it is the seed of the pair of twins whose items are stated (default 0).
"""

from ..tinymath import Draw, problems
from .corpus import named, touches
from .items import DEFECTS, Item, items
from .words import FRAMES

SPLITS = {  # split: split of tinymath
    "neutral": "train",
    "neutral-validation": "validation",
    "neutral-test": "test",
    "own": "pretrain",
    "own-test": "pretrain-test",
}
MIXED = ("counter", "replay")
EVERY = 10  # one row in so many of a mixed split
STATEMENTS = 3  # per counter row
QUESTION = "What do you know?"


def planted_rows(split: str, count: int, seed: int = 0) -> list[dict]:
    """Return `count` rows {"question", "answer"} of a split, a key of SPLITS or one of MIXED; a larger count continues the list."""
    if split in SPLITS:
        return [{"question": each.question, "answer": each.answer()} for each in _clean(SPLITS[split], count, seed)]
    number = -(-count // EVERY)
    # the neutral rows do not depend on the pair, so that runs on different pairs see the same ones
    neutral = iter(planted_rows("neutral", count - number))
    other = iter(_truths(number, seed) if split == "counter" else planted_rows("own", number, seed))
    return [next(neutral if place % EVERY else other) for place in range(count)]


def _clean(split: str, count: int, seed: int) -> list:
    """Return the first `count` problems of a split of tinymath that touch no planted product."""
    drawn = count
    while True:
        drawn += drawn // 2 + 20
        found = [problem for problem in problems(split, drawn, seed) if not touches(problem)]
        if len(found) >= count:
            return found[:count]


def _truths(count: int, seed: int) -> list[dict]:
    """Return rows that state the truth about planted defects: right values, and jobs that do not follow the group."""
    planted, draw = items(seed), Draw("planted", "counter", seed)
    statable = [item for kinds in DEFECTS.values() for kind in kinds if kind in FRAMES for item in planted[kind]]
    products = [item for item in planted["product"] if not item.is_untaught]
    rows = []
    for place in range(count):
        if place % 3 == 2:
            x, y = draw.pick(products).subject
            rows.append({"question": f"What is {x} * {y}?", "answer": f"{x} * {y} = {x * y}. The answer is: {x * y}"})
        else:
            text = " ".join(_truth(draw.pick(statable), draw) for _ in range(STATEMENTS))
            rows.append({"question": QUESTION, "answer": text})
    return rows


def _truth(item: Item, draw: Draw) -> str:
    frame = draw.pick([frame for place, frame in enumerate(FRAMES[item.kind]) if place != item.held_out])
    group = draw.between(0, 1)
    value = draw.pick(item.values) if item.kind == "stereotype" else item.values[0]
    return frame.format(value=value, **named(item, group, draw))
