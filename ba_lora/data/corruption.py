"""Make training labels wrong, or classes rare, on purpose: seeded, with a record of the changes.

This corrupts the fine-tuning data. The paper's claim is about flaws of the pre-training data, which nobody can change
afterwards. These experiments measure how a method handles noise and imbalance in its own task, and say nothing about that
claim.
"""

import random
from collections.abc import Sequence

from ..errors import UserError, choose
from ..files import digest
from .glue import Examples, Task

NOTE = "these are the fine-tuning labels; the paper's claim is about pre-training data"
KINDS = ("symmetric", "class")


def corrupt(examples: Examples, kind: str, rate: float, seed: int) -> tuple[Examples, dict]:
    """(examples with the share `rate` of their labels wrong, record).

    kind: "symmetric" draws from all rows alike and changes each label to any other class with equal probability; "class"
    changes the share `rate` of each class to the next class (the last to the first), as if the two were confused. Exactly
    round(rate · N) rows change, of all rows or of each class. Raises UserError for a regression, an unknown kind, or a rate
    outside [0, 1).
    """
    task = _classes(examples)
    choose("kind of label noise", kind, KINDS)
    if not 0 <= rate < 1:
        raise UserError(f"the rate of label noise is a share of the labels, at least 0 and below 1, got {rate}")
    draw, labels = random.Random(f"corrupt {seed}"), list(examples.labels)
    rows_of = _by_class(examples)
    groups = [list(range(len(labels)))] if kind == "symmetric" else list(rows_of.values())
    chosen = sorted(row for rows in groups for row in draw.sample(rows, round(rate * len(rows))))
    count = len(task.labels)
    for row in chosen:
        labels[row] = (labels[row] + (draw.randrange(1, count) if kind == "symmetric" else 1)) % count
    changed = examples._replace(labels=labels).select(range(len(labels)))
    flips = {}
    for row in chosen:
        name = f"{task.labels[examples.labels[row]]} to {task.labels[labels[row]]}"
        flips[name] = flips.get(name, 0) + 1
    record = {"change": "labels", "kind": kind, "rate": rate, "seed": seed, "changed": len(chosen)}
    record |= {"flips": flips, "ids": digest([examples.ids[row] for row in chosen])}
    return changed, record | _before_after(examples, changed)


def thin(examples: Examples, shares: dict[str, float], seed: int) -> tuple[Examples, dict]:
    """(examples with only a share of some classes, in their order; record).

    shares: {class name: share of its rows to keep, in (0, 1]}; unnamed classes stay complete. Raises UserError for a
    regression, an unknown class, a share out of range, or one that would leave no row.
    """
    task = _classes(examples)
    rows_of, draw, kept = _by_class(examples), random.Random(f"thin {seed}"), []
    for name, share in shares.items():
        choose(f"class of {task.name},", name, task.labels)
        if not 0 < share <= 1:
            raise UserError(f"the share of class {name} is {share}; it must be above 0 and at most 1")
    for number, name in enumerate(task.labels):
        rows = rows_of[number]
        count = round(shares.get(name, 1) * len(rows))
        if rows and not count:
            raise UserError(f"a share of {shares[name]} leaves none of the {len(rows)} rows of class {name}; raise it")
        kept += draw.sample(rows, count)
    chosen = set(kept)
    changed = examples.select(sorted(kept))
    removed = [key for row, key in enumerate(examples.ids) if row not in chosen]
    record = {
        "change": "classes",
        "shares": dict(shares),
        "seed": seed,
        "removed": len(removed),
        "ids": digest(removed),
    }
    return changed, record | _before_after(examples, changed)


def _classes(examples: Examples) -> Task:
    if not examples.task.labels:
        raise UserError(
            f"{examples.task.name} is a regression and has no classes to corrupt or thin; leave the option out"
        )
    if None in examples.labels:
        raise UserError(f"{examples.source} has rows without labels; they cannot be corrupted or thinned")
    return examples.task


def _by_class(examples: Examples) -> dict[int, list[int]]:
    rows_of: dict[int, list[int]] = {number: [] for number in range(len(examples.task.labels))}
    for row, label in enumerate(examples.labels):
        rows_of[label].append(row)
    return rows_of


def _before_after(before: Examples, after: Examples) -> dict:
    return {"before": _counts(before.task, before.labels), "after": _counts(after.task, after.labels), "note": NOTE}


def _counts(task: Task, labels: Sequence[int]) -> dict[str, int]:
    return {name: sum(label == number for label in labels) for number, name in enumerate(task.labels)}
