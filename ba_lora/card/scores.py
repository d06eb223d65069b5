"""The scores of a run, as a table of its card."""

from pathlib import Path

from ..files import check_kinds
from ..folders import checksums
from ..texts import markdown
from .facts import public_name

SCORE = {
    **{"benchmark": "a text", "metric": "a text", "score?": "a number", "stderr?": "a number", "n": "a whole number"},
    **{"data?": "a text", "protocol?": "a text"},
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
    return "\n".join(lines)
