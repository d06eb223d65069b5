"""Proof that this project made a folder, and as which kind of output: the content of a file that only this project writes.

A name alone proves nothing: another tool may have a run.json, or an adapter/ beside logs/.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError

MARKER = (
    ".ba-lora.json"  # names the kind while a folder is written, and afterwards if nothing else does; see ownership.py
)
MADE_BY = "ba-lora"  # in markers, in figures, and in the checksums.json of exported folders
OF_WEIGHTS = {"made_by": MADE_BY, "kind": "weights"}  # extra keys of that checksums.json

# Names of the files of a saved adapter, head or whole model, and of its tokenizer.
WEIGHTS = (
    *("adapter_config.json", "adapter_model.safetensors", "adapter.safetensors", "ba_lora.json", "task.json"),
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "chat_template.json", "chat_template.jinja"),
    *("additional_chat_templates", "README.md", "recipe.json", "checksums.json", MARKER),
)
EVALUATION = (
    *("generations.jsonl", "generation.json", "scored.jsonl", "score.json", "predictions.jsonl", "reliability.png"),
    *("likelihoods.jsonl", "likelihood.json", "losses.jsonl", "loss.json"),
    *("judgments.jsonl", "radar.png", "turns", "scores.json", "row.md", MARKER),
)
CHECKPOINTS = ("start.safetensors", "best.safetensors", *(f"checkpoint-{'[0-9]' * digits}" for digits in range(1, 16)))
FEATURES = ("features_step_*.npy", "labels_step_*.npy", "features.json", "checksums.json")
SAVED = ("adapter", "model")  # what a run trained: one of these folders of its run folder
# Permitted content of a run folder: a file, or a folder and the names in it. A model's code (*.py) is not listed, because its names
# look like those of the user's own scripts.
RUN = {
    **dict.fromkeys(("run.json", "metrics.jsonl", "measures.json"), ()),
    **dict.fromkeys((*SAVED, "merged"), WEIGHTS),
    "features": FEATURES,
    "checkpoints": CHECKPOINTS,
    "logs": ("events.out.tfevents.*", "wandb"),
    "eval": EVALUATION,
}


def _objects(path: Path) -> list[dict]:
    """The JSON object in a file, or in its first line for JSON lines; [] if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            read = json.loads(file.readline() if path.suffix == ".jsonl" else file.read())
    except (OSError, ValueError, RecursionError):
        return []
    return [read] if isinstance(read, dict) else []


def _has(*keys: str, **parts: str) -> Callable[[Path], bool]:
    """Test for a JSON object with all `keys`. parts: name of an inner object → a key that it must have."""

    def proves(path: Path) -> bool:
        return any(
            all(key in found for key in keys)
            and all(isinstance(found.get(part), dict) and key in found[part] for part, key in parts.items())
            for found in _objects(path)
        )

    return proves


def _begins(text: str, within: int = 0) -> Callable[[Path], bool]:
    """A file that begins with `text`, or has it in its first `within` bytes."""

    def proves(path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                head = file.read(within or len(text.encode()))
        except OSError:
            return False
        return text.encode() in head

    return proves


def _metadata(key: str) -> Callable[[Path], bool]:
    """A safetensors file with `key` in its metadata."""

    def proves(path: Path) -> bool:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                return key in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False

    return proves


def _is_score(path: Path, benchmark: str = "") -> bool:
    """A score.json that any version of this project wrote, for a benchmark whose name starts with `benchmark`."""
    return any(
        "metric" in found
        and str(found.get("benchmark")).startswith(benchmark)
        and (
            "ba_lora_version" in found
            or {"protocol", "protocol_version"} <= found.keys()
            or ("n" in found and str(found.get("benchmark")).startswith(("glue/", "gluex/")))
        )
        for found in _objects(path)
    )


def _only_evaluations(path: Path) -> bool:
    """The eval/ of a run folder that was used for evaluation before it was trained."""
    names = {entry.name for entry in path.parent.iterdir()} - {MARKER}
    return names == {path.name} and is_ours(path, "evaluations")


class Kind(NamedTuple):
    """what: its name in messages. proofs: (pattern of a file, test of its content). first: only the first existing file
    decides; otherwise any may. passed: patterns of names that do not count as content."""

    what: str
    proofs: tuple[tuple[str, Callable[[Path], bool]], ...] = ()
    first: bool = False
    passed: tuple[str, ...] = ()


IS_RUN = _has("status", "model", config="method", objective="lambda1")
IS_RESULT = _has("model", "method", "seed", "scores")
IS_TUNING = _has("learning_rates", "scores", "best")
IS_GENERATION = _has("model_hash", "backend", "base", "stop")
IS_LIKELIHOOD = _has("model_hash", "backend", "base", "likelihood")
IS_LOSS = _has("model_hash", "backend", "base", "data", "batch_size")
MEASURED = ("measures.json", _has("evaluations", "scores"))  # alone: a base model, which is only measured
TABLE = ("table.csv", _begins("where,model,method,option,value,seeds"))
IS_FIGURE = _begins(f"Software\0{MADE_BY}", within=256)
TABLE_OF_TEXTS = ("table.csv", _begins("evaluation,unit,method,other,seeds"))
FIGURES = ("*.png", lambda path: all(map(IS_FIGURE, path.parent.glob("*.png"))))
KINDS = {
    "run": Kind("run", (("run.json", IS_RUN), MEASURED, ("eval", _only_evaluations)), first=True),
    "evaluation": Kind(
        "evaluation",
        (
            ("score.json", _is_score),
            ("generation.json", IS_GENERATION),
            ("likelihood.json", IS_LIKELIHOOD),
            ("loss.json", IS_LOSS),
            ("turns/*/generation.json", IS_GENERATION),
            ("predictions.jsonl", _has("id", "logits", "label")),
            ("scores.json", _has("task", "scores", "left_out")),
            ("*/score.json", lambda path: _is_score(path, "gluex/")),
        ),
    ),
    "evaluations": Kind(
        "evaluations",
        (
            ("row.md", lambda path: any(_begins(f"| model | {first} |")(path) for first in ("GSM8K", "tinymath"))),
            ("*", lambda path: is_ours(path, "evaluation")),
        ),
        first=True,
    ),
    "submission": Kind("submission"),
    "experiment": Kind(
        "experiment",
        (("tuning.json", IS_TUNING), TABLE, TABLE_OF_TEXTS, ("*/run.json", IS_RUN), (f"*/{MEASURED[0]}", MEASURED[1])),
    ),
    "tables": Kind("table or figure", (("tuning.json", IS_TUNING), TABLE, TABLE_OF_TEXTS, FIGURES)),
    "results": Kind("results", (("tuning.json", IS_TUNING), ("results.jsonl", IS_RESULT), ("*.json", IS_RESULT))),
    "t-SNE": Kind("t-SNE figure", (("scores.json", _has("classes", "perplexity", "panels")), FIGURES)),
    "benchmark": Kind("benchmark", (("benchmark.json", _has("base", "cases", "growth")),)),
    "device check": Kind("results of this check", (("*.json", _has("part", "card", "smoke", "versions")),)),
    "body": Kind("training of this command"),
    "features": Kind("features", (("features.json", _has("layer", "pooling", "steps")),)),
    "weights": Kind(
        "adapter or model that this project saved",
        (
            ("ba_lora.json", _has("method", "rank", "head", "as_linear")),
            ("checksums.json", lambda path: any(OF_WEIGHTS.items() <= found.items() for found in _objects(path))),
        ),
    ),
    "pre-trained model": Kind(
        "model of this command",
        (("recipe.json", _has("command", "parameters", "accuracy", "story_loss_nats_per_token")),),
    ),
    "teacher cache": Kind(
        "cache",
        (("cache.json", _has("format", "weights", "labels", "rows")), ("rows-*.safetensors", _metadata("checksum"))),
        passed=(".cache.json.lock", ".cache.json.*.tmp"),
    ),
    "decompositions": Kind(
        "decompositions",
        ((f"{'[0-9a-f]' * 32}.safetensors", _metadata("checksum")),),
        passed=(f".{'[0-9a-f]' * 32}.safetensors.*.tmp",),
    ),
}
# Parts of a run that are written under a temporary name first.
REPLACED = ("run.json", "metrics.jsonl", "measures.json", *SAVED, "merged")
# Parts of a run that belong to it regardless of their content.
PARTS_OF_A_RUN = {"weights": (*SAVED, "merged"), "features": ("features",), "evaluations": ("eval",)}


def is_ours(folder: str | Path, kind: str) -> bool:
    """Return True if this project made `folder` as that kind of output, a key of KINDS. Read-only."""
    folder = Path(folder)
    if not folder.is_dir():
        return False
    marked = read_marker(folder)
    if marked and marked.get("made_by") == MADE_BY and marked.get("kind") == kind:
        return True
    return is_proven(folder, kind)


def saved_in(run: str | Path) -> Path:
    """adapter/ or model/ of a run folder. Raises UserError if the run has not saved what it trained."""
    for name in SAVED:
        if (Path(run) / name).is_dir():
            return Path(run) / name
    raise UserError(f"run folder {run} has neither adapter/ nor model/: the run has not ended")


def is_proven(folder: Path, kind: str) -> bool:
    """Return True if `folder` proves its kind without a marker."""
    if is_part(folder, kind):
        return True
    for pattern, proves in KINDS[kind].proofs:
        found = [path for path in sorted(folder.glob(pattern)) if path.name != MARKER]
        if any(proves(path) for path in found):
            return True
        if found and KINDS[kind].first:
            return False
    return False


def is_part(folder: Path, kind: str) -> bool:
    """Return True if `folder` is the part of a run folder that holds this kind."""
    place = Path(os.path.abspath(folder))
    return place.name in PARTS_OF_A_RUN.get(kind, ()) and IS_RUN(place.parent / "run.json")


def read_marker(folder: Path) -> dict | None:
    marker = folder / MARKER
    return next(iter(_objects(marker)), None) if marker.is_file() and not marker.is_symlink() else None
