"""Computes means and standard errors of ratings, by turn and category, and draws the radar plot."""

import math
from collections import Counter
from pathlib import Path

from ba_lora.errors import UserError

from .judge import PROTOCOLS, Judge, Task, key_of, read_replies

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
Z = 1.959963984540054  # of a 95% interval


def score_tasks(
    tasks: list[Task], questions: list[dict], judge: Judge, known: dict, refused: dict, protocol: str = "ba-lora"
) -> tuple[dict, list[dict]]:
    """Return (the statistics of score.json, the lines of scored.jsonl).

    known: key → judgment, of every task that is not in `refused`. Raises UserError if no judgment has a rating.
    """
    category = {question["id"]: question["category"] for question in questions}
    scored, several, dates = [], 0, []
    for task in tasks:
        line = {"id": task.id, "turn": task.turn, "category": category[task.id]}
        key = key_of(judge, task)
        if key in refused:
            scored.append(line | {"rating": None, "reason": "refused", "judgment": key})
            continue
        reading = read_replies(known[key]["replies"], protocol)
        several += reading.several
        dates.append(known[key]["date"])
        scored.append(line | {"rating": reading.rating, "reason": reading.reason, "judgment": key})
    rated = [line for line in scored if line["rating"] is not None]
    reasons = Counter(line["reason"] for line in scored if line["rating"] is None)
    if not rated:
        counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        replies = known[scored[0]["judgment"]]["replies"] if scored[0]["judgment"] in known else [""]
        seen = next(iter(refused.values()), f"its first reply begins {replies[0][:60]!r}")
        raise UserError(
            f"judge {judge.model} rates none of {len(scored)} answers ({counts}; {seen}); take another judge"
        )
    means = _by_turn(rated)
    half = None if means["stderr"] is None else Z * means["stderr"]
    present = sorted({line["category"] for line in rated}, key=lambda name: ((*CATEGORIES, name).index(name), name))
    return {
        **means,
        "interval": None if half is None else [means["score"] - half, means["score"] + half],
        "n_questions": len({line["id"] for line in rated}),
        "by_category": {name: _by_turn([line for line in rated if line["category"] == name]) for name in present},
        "n_unparsable": len(scored) - len(rated),
        "unrated": dict(reasons),
        "n_several": several,
        "judged": [min(dates), max(dates)],
        "protocol": protocol,
        "protocol_version": PROTOCOLS[protocol],
    }, scored


def _by_turn(rated: list[dict]) -> dict:
    first, second = ([line for line in rated if line["turn"] == turn] for turn in (1, 2))
    return summarise(rated) | {"first_turn": summarise(first), "second_turn": summarise(second)}


def summarise(rated: list[dict]) -> dict:
    """Return {"score", "stderr", "n"} of lines with a rating: the mean, and its standard error over questions.

    Both ratings of a question are correlated, so the error is that of a mean over clusters,
    sqrt(Q/(Q − 1) · Σ_q (Σ_{i in q} (r_i − mean))²) / n with Q questions (sd/√n for one rating per
    question). None for Q = 1.
    """
    if not rated:
        return {"score": None, "stderr": None, "n": 0}
    n = len(rated)
    mean = sum(line["rating"] for line in rated) / n
    sums = Counter()
    for line in rated:
        sums[line["id"]] += line["rating"] - mean
    q = len(sums)
    stderr = math.sqrt(q / (q - 1) * sum(value**2 for value in sums.values())) / n if q > 1 else None
    return {"score": mean, "stderr": stderr, "n": n}


def draw_radar(by_category: dict[str, dict], path: Path) -> None:
    """Draw a radar plot of the means by category, from 0 to 10: both turns together, and each turn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots(subplot_kw={"projection": "polar"})
    angles = [2 * math.pi * index / len(by_category) for index in range(len(by_category))]
    for label, read, style in (
        ("both turns", lambda means: means, {"linewidth": 2}),
        ("first turn", lambda means: means["first_turn"], {"linewidth": 1, "linestyle": "--"}),
        ("second turn", lambda means: means["second_turn"], {"linewidth": 1, "linestyle": ":"}),
    ):
        means = [math.nan if read(value)["score"] is None else read(value)["score"] for value in by_category.values()]
        axes.plot([*angles, angles[0]], [*means, means[0]], marker="o", markersize=3, label=label, **style)
    axes.set_xticks(angles, list(by_category))
    axes.tick_params(axis="x", pad=12)
    axes.set_ylim(0, 10)
    axes.set_yticks([2, 4, 6, 8, 10])
    axes.legend(loc="lower right", bbox_to_anchor=(1.1, -0.1), fontsize="small")
    figure.savefig(path, dpi=150)
