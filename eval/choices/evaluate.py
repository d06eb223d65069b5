"""The benchmarks that compare log-likelihoods: ask or read them, score them, and write and print the score beside the ability."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ba_lora.data.sets import PACKAGE, SETS, open_set
from ba_lora.errors import UserError, choose
from ba_lora.files import KINDS, digest, sha256

from ..harness.command import Benchmark
from ..harness.lines import check_field, count_missing, read_line
from ..harness.scores import LIKELIHOODS, SCORE, facts_beside, write_score
from . import ability
from .ask import Candidate, ask_likelihoods
from .estimates import percent
from .halves import HALVES, SCORED

FIELDS = ("id", "choice", "logprob", "tokens", "bytes", "reference")
FACTS = (
    "likelihood",
    "set",
    "data_hash",
    "held_out_source",
    "held_out_hash",
    "batch_size",
    "half",
)  # of score.json, beside the usual ones


class Scored(NamedTuple):
    """statistics: of score.json, with metric, score, stderr, interval, n and ideal. own: see `ability.judged`. lines: of scored.jsonl."""

    statistics: dict
    own: dict | None
    lines: list[dict]


class Choices(NamedTuple):
    """The differences between these benchmarks. An answer is {"id", "reference", "found": choice → logprob, tokens, bytes}."""

    name: str  # a key of SETS
    protocols: dict[str, str]  # name → version; the first is the default
    read: Callable[[Sequence[Path]], list[dict]]  # files → items, with an "id"; raises UserError naming a bad row
    candidates: Callable[[dict, str], list[Candidate]]  # (item, protocol)
    score: Callable[[Sequence[dict], str], Scored]  # (answers, protocol)
    half: Callable[[dict], str]  # item → one of HALVES
    measure: str  # of a line of scored.jsonl; its mean is the bias that the score states


def benchmark_of(choices: Choices, module: str, text: str, examples: str) -> Benchmark:
    """Return the benchmark of the module; for the last two see `Benchmark`."""
    return Benchmark(
        module,
        text,
        examples,
        choices.protocols,
        max_new_tokens=None,
        add_options=add_half,
        load=lambda data, base, limit: load(choices, data, limit)[0],
        evaluate=partial(evaluate, choices),
        generates=False,
    )


def add_half(parser: argparse.ArgumentParser) -> None:
    """Add --half."""
    parser.add_argument(
        "--half",
        help=f"{SCORED}: only the half of the items that the check of sensitivity never tunes on; tuned: the other one (default: all)",
    )


def load(
    choices: Choices, data: str | None, limit: int | None = None, half: str | None = None
) -> tuple[list[dict], dict]:
    """(the first `limit` items, {"data", "set", "data_hash", "half"}) of a file or folder, else of the package.

    half: one of HALVES, whose items alone are kept; None: all.
    """
    if data is None:
        files, named = open_set(choices.name), f"{PACKAGE}: {SETS[choices.name].title}"
    else:
        place = Path(data)
        files = sorted(each for each in place.iterdir() if each.is_file()) if place.is_dir() else [place]
        named = "of the user"
    items = choices.read(files)
    if not items:
        raise UserError(f"{data or PACKAGE} has no rows; give a complete file")
    hashes = [sha256(file) for file in files]
    if data and sorted(hashes) == sorted(SETS[choices.name].files.values()):
        named = SETS[choices.name].title
    if half:
        items = [item for item in items if choices.half(item) == half]
    return items[:limit], {"data": data or PACKAGE, "set": named, "data_hash": digest(hashes), "half": half}


def evaluate(choices: Choices, args: argparse.Namespace, folder: Path) -> int:
    """Compute log-likelihoods if necessary, then score."""
    if args.half is not None:
        choose("--half", args.half, HALVES)
    if args.half and args.rescore:
        raise UserError(
            f"--half {args.half} has no effect with --rescore, which scores the items of its file; leave it out"
        )
    if args.rescore:
        records = read_likelihoods(args.rescore)
        facts, known = facts_beside(args.rescore, FACTS), None
        if args.data:
            known = {str(item["id"]) for item in load(choices, args.data, args.limit)[0]}
    else:
        items, facts = load(choices, args.data, args.limit, args.half)
        texts, source = ability.held_out_texts(args.held_out)
        facts |= {"held_out_source": source, "held_out_hash": digest(texts)}
        candidates = [each for item in items for each in choices.candidates(item, args.protocol)]
        records, facts = ask_likelihoods(args, folder, [*candidates, *ability.candidates_of(texts)], facts)
        known = {str(item["id"]) for item in items}
    answers = answers_of(records)
    held_out = [answer for answer in answers if answer["id"].startswith(ability.MARK)]
    items = [answer for answer in answers if not answer["id"].startswith(ability.MARK)][: args.limit]
    if not items:
        raise UserError(f"{args.rescore} has no line of an item; give a whole {LIKELIHOODS}")
    beside, lines = ability.summary(held_out, args.rescore or "the run")
    scored = choices.score(items, args.protocol)
    able = ability.judged(beside, scored.own)
    score = {"benchmark": choices.name, **scored.statistics, "item_measure": choices.measure, "ability": able}
    score |= {"protocol": args.protocol}
    score |= {"protocol_version": choices.protocols[args.protocol], "rescored": args.rescore}
    score |= {"missing": count_missing(items, known, args.rescore), **{name: facts.get(name) for name in FACTS}}
    write_score(folder, score, facts, [*scored.lines, *lines])
    print(f"{choices.name} {_shown(scored.statistics)}\n  beside it: {ability.shown(able)}\n  → {folder / SCORE}")
    return 0


def _shown(statistics: dict) -> str:
    return f"{statistics['metric']} {percent(statistics)}; {statistics['ideal']}"


def read_likelihoods(path: str | Path) -> list[dict]:
    """Return the lines of a likelihoods.jsonl. Raises UserError naming the line that lacks a field or repeats a choice."""
    path, records, seen = Path(path), [], {}
    if not path.is_file():
        raise UserError(f"file {path} does not exist; give a {LIKELIHOODS}")
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            record = read_line(line, place, FIELDS)
            for name, kind in (("choice", "a text"), ("logprob", "a number"), ("reference", "an object")):
                check_field(record, name, kind, place)
            for name in ("tokens", "bytes"):
                if not KINDS["a whole number"](record[name]) or record[name] < 1:
                    raise UserError(f"{place}: '{name}' is {record[name]!r}, a whole number above 0 is needed")
            key = (str(record["id"]), record["choice"])
            if key in seen:
                raise UserError(f"{place}: choice {key[1]} of id {key[0]} was already on line {seen[key]}; keep one")
            seen[key] = number
            records.append(record)
    return records


def answers_of(records: Sequence[dict]) -> list[dict]:
    """Records by item, in their order: {"id", "reference", "found": choice → {"logprob", "tokens", "bytes"}}."""
    answers: dict[str, dict] = {}
    for record in records:
        key = str(record["id"])
        answer = answers.setdefault(key, {"id": key, "reference": record["reference"], "found": {}})
        answer["found"][record["choice"]] = {name: record[name] for name in ("logprob", "tokens", "bytes")}
    return list(answers.values())


def found_of(answer: dict, *choices: str) -> list[dict]:
    """The results of the choices of an item. Raises UserError naming the item that lacks one: the file is of another protocol."""
    missing = [choice for choice in choices if choice not in answer["found"]]
    if missing:
        raise UserError(
            f"id {answer['id']} has no choice '{missing[0]}' (it has: {', '.join(answer['found'])}); the file is of another benchmark or "
            "protocol"
        )
    return [answer["found"][choice] for choice in choices]
