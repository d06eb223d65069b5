"""The held-out rows of a run in its card, and their part in the choice of what is saved."""

from ..objective.settings import TERMS
from ..texts import code
from .facts import public_name

VALIDATION = {  # kinds of the values of run.json's "validation"
    **dict.fromkeys(("rows", "tokens", "also_trained"), "a whole number"),
    **{"hash": "a text", "data?": "a text", "split?": "a text", "share?": "a number", "seed?": "a whole number"},
}
CHOSEN = {  # further ones, of a run that has ended
    **dict.fromkeys(("best.step", "last.step", "saved_step", "planned_steps", "every"), "a whole number"),
    **{"best": "an object", "last": "an object", "best.task": "a number", "last.task": "a number", "keep": "a text"},
}
MEASURED = (*TERMS, "accuracy")


def held_out_rows(facts: dict) -> str:
    """The rows, what the loss on them decided, and the terms at the best and the last look. facts: run.json's "validation"."""
    lines = [_rows(facts)]
    if "saved_step" in facts:  # a run that has ended
        lines += ["", _choice(facts), "", _table(facts)]
    return "\n".join(lines)


def _rows(facts: dict) -> str:
    if facts.get("data"):
        where = f"{code(public_name(facts['data']))} (split {facts['split']} where it has splits)"
    else:
        where = (
            f"a share of {facts['share']:g} of the training data, drawn by the seed {facts['seed']} and not trained on"
        )
    shared = f" {facts['also_trained']} of them have the tokens of a training row." if facts["also_trained"] else ""
    return (
        f"Held out: {where}; {facts['rows']:,} rows of {facts['tokens']:,} tokens together; SHA-256 of their token ids and labels\n"
        f"{code(facts['hash'])}.{shared}"
    )


def _choice(facts: dict) -> str:
    best, last = facts["best"]["step"], facts["last"]["step"]
    early = f"after step {last} of {facts['planned_steps']}, because the task loss on these rows had stopped falling"
    biased = "so the loss on them below is no estimate of the loss on new data."
    if facts["keep"] == "best":
        ended = f" The run ended early, {early}." if facts.get("stopped_early") else ""
        return (
            f"**These rows took part in the choice of what is saved here**: step {best} has the lowest task loss on them of all looks\n"
            f"(every {facts['every']} steps), {biased}{ended}"
        )
    if facts.get("stopped_early"):
        return (
            f"**These rows took part in the choice of what is saved here**: the run ended {early},\n{biased} Step {last}, the last one, is "
            "saved."
        )
    return f"These rows took no part in the choice of what is saved here: step {last}, the last one, is saved."


def _table(facts: dict) -> str:
    shown = [name for name in MEASURED if any(facts[look].get(name) is not None for look in ("best", "last"))]
    lines = [f"| | step | {' | '.join(shown)} |", f"|---|{'---:|' * (1 + len(shown))}"]
    for title, look in (("lowest task loss", "best"), ("last", "last")):
        values = ["–" if facts[look].get(name) is None else f"{facts[look][name]:.4g}" for name in shown]
        saved = " (saved)" if facts[look]["step"] == facts["saved_step"] else ""
        lines.append(f"| {title}{saved} | {facts[look]['step']} | {' | '.join(values)} |")
    return "\n".join(lines)
