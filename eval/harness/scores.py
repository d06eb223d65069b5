"""score.json: the fraction right with its uncertainty, and how the completions were generated."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import ba_lora
from ba_lora.folders.checksums import read_record, write_record

from .lines import write_lines

GENERATION_FACTS = (  # returned by `ask`; null after --rescore of a file of unknown origin
    "model",
    "model_hash",
    "adapter",
    "adapter_hash",
    "weights",
    "base",
    "template",
    "data",
    "dtype",
    "backend",
    "backend_version",
    "processes",
    "endpoint",
    "stop",
    "sampling",
    "shots",
    "resumed",
    "seconds",
    "tokens_per_second",
)
GENERATIONS, SCORED, SCORE = "generations.jsonl", "scored.jsonl", "score.json"
LIKELIHOODS, LOSSES = "likelihoods.jsonl", "losses.jsonl"


def facts_beside(path: str | Path, more: Iterable[str] = ()) -> dict:
    """Return the generation facts of a generations.jsonl or likelihoods.jsonl from the score.json beside it; {} for a file from anywhere else.

    more: further keys of score.json to return.
    """
    score = Path(path).with_name(SCORE)
    if Path(path).name not in (GENERATIONS, LIKELIHOODS) or not score.is_file():
        return {}
    known = read_record(score, (Path(path).name,))
    return {key: known.get(key) for key in (*GENERATION_FACTS, *more)}


def summarise(correct: Sequence[float]) -> dict:
    """Return the mean over tasks, with its standard error and its 95% interval after Wilson (1927).

    A task counts 1 or 0, or the mean of its samples; in the latter case the interval is that of the number of right-or-wrong
    tasks with the same standard error.
    """
    n, z = len(correct), 1.959963984540054
    total = sum(correct)
    p = total / n
    binary = all(value in (0, 1) for value in correct)
    variance = p * (1 - p) if binary else sum((value - p) ** 2 for value in correct) / n
    size = n if binary or not variance else n * p * (1 - p) / variance
    centre, half = p + z * z / (2 * size), z * math.sqrt(p * (1 - p) / size + z * z / (4 * size * size))
    return {
        "score": p,
        "stderr": math.sqrt(variance / n),
        "interval": [max(0.0, (centre - half) / (1 + z * z / size)), min(1.0, (centre + half) / (1 + z * z / size))],
        "n": n,
        "n_correct": int(total) if total == int(total) else total,
    }


def write_score(folder: Path, score: dict, facts: dict, scored: Iterable[dict]) -> dict:
    """Write scored.jsonl and then score.json, whose presence says that the evaluation is complete."""
    (folder / SCORE).unlink(missing_ok=True)
    write_lines(folder / SCORED, scored)
    whole = score | {key: facts.get(key) for key in GENERATION_FACTS} | {"ba_lora_version": ba_lora.__version__}
    write_record(folder / SCORE, whole, (GENERATIONS, LIKELIHOODS, SCORED))
    return whole
