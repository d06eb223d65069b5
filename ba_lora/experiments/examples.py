"""The first test problems with each model's answer, from the run folders: examples of the answers behind the scores."""

from pathlib import Path

from ..files import read_json_lines
from ..folders.checksums import read_record
from ..texts import code, markdown
from .matrix import Experiment

SHOWN = 3  # problems


def examples(experiment: Experiment) -> str:
    """Return Markdown, or "" if no run here has answers. Each model is shown with its first seed."""
    name = experiment.evaluations[0].name if experiment.evaluations else ""
    answers, right = {}, {}
    for run in experiment.runs:
        folder = run.folder / "eval" / name
        if run.variant.varied or run.method in answers or not (folder / "generations.jsonl").is_file():
            continue
        if (folder / "score.json").is_file():
            read_record(folder / "score.json")
        answers[run.method] = _first(folder / "generations.jsonl", {"prompt": "a text", "completion": "a text"})
        right[run.method] = [line.get("correct") for line in _first(folder / "scored.jsonl", {})]
    if not answers:
        return ""
    lines = ["The first test problems and each model's answer, first seed:"]
    for index, asked in enumerate(next(iter(answers.values()))):
        lines += ["", f"**Problem {index + 1}** {code(asked['prompt'])}", ""]
        lines.append(f"- reference: {code(asked.get('reference'))}")
        for method, records in answers.items():
            mark = "right" if right[method][index] else "wrong"
            answer = records[index]["completion"]
            lines.append(f"- {markdown(method)} ({mark}): {code(answer) if answer.strip() else 'no text'}")
    return "\n".join(lines)


def _first(file: Path, kinds: dict[str, str]) -> list[dict]:
    return read_json_lines(file, kinds)[:SHOWN]
