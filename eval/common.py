"""What every benchmark shares: the options, opening what is to be evaluated, the files between the two parts, the statistics.

A benchmark generates D/generations.jsonl, then scores that file: D/score.json, and D/scored.jsonl with one line a task for
paired comparisons. Each file is written whole or not at all. torch is imported where a model is opened, not before:
it takes seconds, and --help and --rescore do without.
"""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import ba_lora
from ba_lora.data.templates import NAMES, Template, check_template, default_template, make_template, template_of
from ba_lora.errors import UserError, choose
from ba_lora.files import atomic_write, read_json, write_json

GENERATION_FACTS = (  # what `generation_facts` gives; null after --rescore of a file of unknown origin
    "model",
    "adapter",
    "base",
    "template",
    "data",
    "dtype",
    "backend",
    "backend_version",
    "stop",
    "sampling",
    "seconds",
    "tokens_per_second",
)
GENERATIONS, SCORED, SCORE = "generations.jsonl", "scored.jsonl", "score.json"


def add_options(parser: argparse.ArgumentParser, protocols: Iterable[str], max_new_tokens: int) -> None:
    """Add the options that every benchmark has. Values are checked where they are read, so that errors are one line."""
    add = parser.add_argument
    add("--model", help="'tiny', a model folder, a hub id, or the folder of a training run (its base and adapter)")
    add("--adapter", help="adapter folder or run folder to put on --model")
    add("--data", help="file with the tasks")
    add("--rescore", metavar="FILE", help="score this file of {id, completion, reference} lines again; no model")
    add("--output_dir", metavar="D", help=f"folder for {GENERATIONS}, {SCORED} and {SCORE}")
    add("--overwrite", action="store_true", help="replace the results that --output_dir already holds")
    add("--limit", type=int, metavar="N", help="only the first N tasks")
    add("--protocol", default="ba-lora", help=f"one of: {', '.join(protocols)} (default: %(default)s)")
    add(
        "--template",
        help=f"prompt template, one of: {', '.join(NAMES)} (default: the run's own; tiny: plain; else alpaca)",
    )
    add("--backend", default="transformers", help="transformers, vllm or openai (default: %(default)s)")
    add(
        "--max_new_tokens",
        type=int,
        default=max_new_tokens,
        help="tokens of a completion at most (default: %(default)s)",
    )
    add("--batch_size", type=int, default=64, help="prompts generated at once (default: %(default)s)")
    add("--dtype", default="float32", help="float32, bfloat16, float16, or auto: as saved (default: %(default)s)")
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the model; read it before")
    add("--debug", action="store_true", help="show the traceback of an error")


def check_options(args: argparse.Namespace, protocols: Iterable[str]) -> Path:
    """Refuse what cannot work before anything slow starts; returns the output folder."""
    if bool(args.model) == bool(args.rescore):
        raise UserError("give either --model M to generate and score, or --rescore FILE to score a file again")
    if args.rescore and args.adapter:
        raise UserError(f"--adapter {args.adapter} has no use with --rescore, which runs no model; leave it out")
    if not args.output_dir:
        raise UserError("--output_dir is missing; name the folder for the results")
    choose("protocol", args.protocol, protocols)
    for option in ("limit", "max_new_tokens", "batch_size"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} is {value}; it must be at least 1")
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file; name a folder")
    source = Path(args.rescore).resolve() if args.rescore else None
    there = [name for name in (GENERATIONS, SCORED, SCORE) if (folder / name).exists()]
    there = [name for name in there if (folder / name).resolve() != source]
    if there and not args.overwrite:
        raise UserError(
            f"--output_dir {folder} already holds {', '.join(there)}; add --overwrite or name another folder"
        )
    return folder


class Subject(NamedTuple):
    """What is evaluated: `base` is the name of the model without its adapter, `template` how its prompts are written."""

    model: object
    tokenizer: object
    template: Template
    base: str


def find_base(model: str, adapter: str | None = None) -> str:
    """The name of the base model behind --model and --adapter, without opening a weight."""
    from ba_lora.adapters import find_run

    trained = _trained(model)
    return model if adapter or not trained else find_run(trained)[1] or model


def open_subject(
    model: str,
    adapter: str | None = None,
    template: str | None = None,
    dtype: str = "float32",
    *,
    trust_remote_code: bool = False,
) -> Subject:
    """Open --model (name, model folder or run folder), with --adapter on it, its tokenizer and its template.

    The template is the one asked for, else the one the run recorded, else "plain" for the embedded model, else "alpaca".
    Raises UserError when something cannot be opened.
    """
    from ba_lora.adapters import find_run, load
    from ba_lora.models import load_model, load_tokenizer

    if template:
        check_template(template)
    base, trained = find_base(model, adapter), adapter or _trained(model)
    code = {"trust_remote_code": trust_remote_code}
    if trained is None:
        opened, tokenizer, recorded = load_model(model, dtype, **code), load_tokenizer(model, **code), None
    else:
        opened = load(trained, base=model if adapter else None, dtype=dtype, **code)
        saved, recorded = find_run(trained)[0], template_of(trained)
        tokenizer = load_tokenizer(str(saved) if (saved / "tokenizer_config.json").is_file() else base, **code)
    if template or not recorded:
        recorded = make_template(template or default_template(base), tokenizer)
    return Subject(_to_accelerator(opened), tokenizer, recorded, base)


def _trained(name: str) -> str | None:
    """`name` if it is what a training run saved: its folder, or its adapter or model folder (then the run's own)."""
    folder = Path(name)
    if folder.name == "model" and (folder / "config.json").is_file() and (folder.parent / "run.json").is_file():
        return str(folder.parent)
    return name if any((folder / file).is_file() for file in ("run.json", "adapter_config.json")) else None


def _to_accelerator(model):
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """Write one JSON object a line; the file appears whole or not at all."""
    with atomic_write(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_lines(path: str | Path, fields: Sequence[str], limit: int | None = None) -> list[dict]:
    """The objects of a JSON lines file, the first `limit`; every line has `fields` and an id of its own.

    Raises UserError naming the file and the line for anything else, an empty file included.
    """
    path, records, seen = Path(path), [], {}
    if not path.is_file():
        raise UserError(f"file {path} does not exist; give a file with one JSON object a line ({', '.join(fields)})")
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if limit is not None and len(records) >= limit:
                break
            record = _read_line(line, f"{path}, line {number}", fields)
            key = str(record["id"])
            if key in seen:
                raise UserError(
                    f"{path}, line {number}: id {key} was already on line {seen[key]}; keep one line a task"
                )
            seen[key] = number
            records.append(record)
    if not records:
        raise UserError(f"{path} has no lines; give a file with one JSON object a line ({', '.join(fields)})")
    return records


def _read_line(line: str, place: str, fields: Sequence[str]) -> dict:
    try:
        line.encode("utf-8")
        record = json.loads(line)
    except UnicodeEncodeError:
        raise UserError(f"{place}: not UTF-8 text; convert the file") from None
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON ({error}); mend or remove the line") from None
    if not isinstance(record, dict):
        raise UserError(f"{place}: a {type(record).__name__}, an object with {', '.join(fields)} is needed")
    for field in fields:
        if record.get(field) is None:
            has = ", ".join(record) or "nothing"
            raise UserError(f"{place}: no '{field}' (the line has: {has}); every line needs {', '.join(fields)}")
    if not isinstance(record.get("completion", ""), str):
        raise UserError(f"{place}: 'completion' is {record['completion']!r}, a text is needed")
    return record


def generation_facts(
    args: argparse.Namespace, subject: Subject, data: str, records: list[dict], seconds: float
) -> dict:
    """How generations came about, for score.json: what only the generating part knows."""
    from .backends import backend_version

    return {
        "model": args.model,
        "adapter": args.adapter,
        "base": subject.base,
        "template": subject.template.name,
        "data": data,
        "dtype": args.dtype,
        "backend": args.backend,
        "backend_version": backend_version(args.backend),
        "stop": [subject.template.end or subject.tokenizer.eos_token],
        "sampling": {"temperature": 0, "max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size},
        "seconds": round(seconds, 2),
        "tokens_per_second": round(sum(record["tokens"] for record in records) / seconds, 1),
    }


def facts_beside(path: str | Path) -> dict:
    """The generation facts of a generations.jsonl from the score.json beside it; {} for a file from anywhere else."""
    score = Path(path).with_name(SCORE)
    if Path(path).name != GENERATIONS or not score.is_file():
        return {}
    try:
        known = read_json(score)
    except ValueError as error:
        raise UserError(f"{score}, beside the generations, is not valid JSON ({error}); mend or remove it") from None
    return {key: known.get(key) for key in GENERATION_FACTS}


def count_missing(records: list[dict], known_ids: Iterable | None, source: str) -> int | None:
    """How many of the data's tasks the file lacks; None where the data is not known. UserError if nothing matches."""
    if known_ids is None:
        return None
    known, there = {str(known_id) for known_id in known_ids}, {str(record["id"]) for record in records}
    if not known & there:
        raise UserError(
            f"no id of {source} is a task of --data (for example {min(there)}); give the data it was made from"
        )
    return len(known - there)


def summarise(correct: Sequence[bool]) -> dict:
    """Fraction correct with its standard error sqrt(p(1 − p)/n) and its 95% interval after Wilson (1927)."""
    n, z = len(correct), 1.959963984540054
    p = sum(correct) / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = [max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))]
    return {
        "score": p,
        "stderr": math.sqrt(p * (1 - p) / n),
        "interval": interval,
        "n": n,
        "n_correct": sum(correct),
    }


def write_score(folder: Path, score: dict, facts: dict, scored: Iterable[dict]) -> dict:
    """Write scored.jsonl and, last, score.json: its presence says that the evaluation is complete."""
    (folder / SCORE).unlink(missing_ok=True)
    write_lines(folder / SCORED, scored)
    whole = score | {key: facts.get(key) for key in GENERATION_FACTS} | {"ba_lora_version": ba_lora.__version__}
    write_json(folder / SCORE, whole)
    return whole
