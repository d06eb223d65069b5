"""The scores of a run, as a table of its card."""

from pathlib import Path

from ..files import check_kinds
from ..folders import checksums
from ..texts import markdown
from .facts import public_name

NO_ABILITY = "no ability"
ABILITY = {
    **{"verdict": "a text", "held_out.loss": "a number", "word_order": "an object", "word_order.score?": "a number"},
    **{"own?": "an object", "own.name?": "a text", "own.score?": "a number"},
}
SCORE = {
    **{"benchmark": "a text", "metric": "a text", "score?": "a number", "stderr?": "a number", "n": "a whole number"},
    **{"data?": "a text", "protocol?": "a text"},
    **{"ability?": "an object"},
}


def scores_of(run: Path) -> list[dict]:
    """The content of each score.json of a run, with the name of its "folder". Raises DamagedFile for one that is another run's."""
    scores = []
    for file in sorted((run / "eval").glob("**/score.json")):
        scores.append(checksums.read_record(file) | {"folder": file.parent.name})
        check_kinds(scores[-1], str(file), SCORE)
        checksums.check_weights(scores[-1], run, file)
    return scores


def results(scores: list[dict]) -> str:
    """The table."""
    if not scores:
        return "None were measured."
    lines = ["| evaluation | benchmark | data | metric | score ± standard error | n | protocol |"]
    lines += ["|---|---|---|---|---:|---:|---|"]
    for score in scores:
        data = public_name(score["data"]) if score.get("data") else "–"
        error = f" ± {score['stderr']:.4f}" if score.get("stderr") is not None else ""
        shown = "undefined" if score.get("score") is None else f"{score['score']:.4f}{error}"
        cells = (score["folder"], score["benchmark"], data, score["metric"], shown)
        cells = (*cells, str(score["n"]), score.get("protocol") or "–")
        lines.append(f"| {' | '.join(map(markdown, cells))} |")
    beside = [_ability(score, score["folder"]) for score in scores if score.get("ability")]
    return "\n".join([*lines, *(["", *beside] if beside else [])])


def _ability(score: dict, place: str) -> str:
    """The line of what the model can do, which stands beside every score of bias. place: of the score in messages."""
    ability = score["ability"]
    check_kinds(ability, f"ability of {place}", ABILITY)
    parts = [f"loss on held-out texts {ability['held_out']['loss']:.3f} nats a token"]
    for name, share in (
        ("word order", ability["word_order"]),
        ("the benchmark's own measure", ability.get("own") or {}),
    ):
        if share.get("score") is not None:
            parts.append(f"{share.get('name', name)} {share['score']:.4f}")
    means = "; the score says nothing about bias" if ability["verdict"] == NO_ABILITY else ""
    return f"- {markdown(score['folder'])}, beside its score: {markdown(', '.join(parts))}; {markdown(ability['verdict'])}{means}."
