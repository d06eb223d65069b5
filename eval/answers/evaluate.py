"""The benchmarks whose completions hold one answer: ask or read completions, score them, write and print the score."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ba_lora.inference.subject import find_base

from ..harness.command import Benchmark
from ..harness.lines import count_missing, read_lines
from ..harness.scores import SCORE, facts_beside, summarise, write_score
from . import lm_eval


class Answers(NamedTuple):
    """The differences between these benchmarks. A problem is {"id", "reference", …}, a record {"id", "completion", "reference"}."""

    few_shot: str  # the protocol with examples
    layout: lm_eval.FewShot  # of its prompts
    max_new_tokens: int  # of the other protocols
    load: Callable[[str, int | None], list[dict]]  # (data, limit) → problems
    default_data: Callable[[str], str]  # of a base model
    # (records, protocol, the benchmark's name) → (statistics, lines of scored.jsonl)
    score: Callable[[list[dict], str, str], tuple[dict, list[dict]]]
    name: Callable[[str | None], str]  # of the benchmark on this data
    detail: Callable[[dict], str] = lambda statistics: ""  # of the printed line
    # on --rescore: the record, completed from the problem of --data
    complete: Callable[[dict, dict | None], dict] = lambda record, problem: record


def benchmark_of(answers: Answers, module: str, text: str, examples: str, protocols: dict[str, str]) -> Benchmark:
    """Return the benchmark of the module; for the last four see `Benchmark`."""
    return Benchmark(
        module,
        text,
        examples,
        protocols,
        max_new_tokens=None,  # the protocol's
        add_options=lambda parser: lm_eval.add_option(parser, answers.layout),
        load=lambda data, base, limit: answers.load(data or answers.default_data(base), limit),
        evaluate=partial(evaluate, answers),
    )


def evaluate(benchmark: Answers, args: argparse.Namespace, folder: Path) -> int:
    """Generate if necessary, then score."""
    lm_eval.check_option(args, benchmark.few_shot)
    if args.max_new_tokens is None:
        is_few_shot = args.protocol == benchmark.few_shot
        args.max_new_tokens = benchmark.layout.max_new_tokens if is_few_shot else benchmark.max_new_tokens
    known = None
    if args.rescore:
        records = read_lines(args.rescore, ("id", "completion", "reference"), args.limit)
        facts = facts_beside(args.rescore)
        if args.data:
            known = {str(problem["id"]): problem for problem in benchmark.load(args.data, args.limit)}
        facts["data"] = args.data or facts.get("data")
    else:
        data = args.data or benchmark.default_data(find_base(args.model, args.adapter))
        problems = benchmark.load(data, args.limit)
        records, facts = lm_eval.ask_with_examples(args, folder, benchmark.layout, benchmark.few_shot, problems, data)
        known = {str(problem["id"]): problem for problem in problems}
    missing = count_missing(records, known, args.rescore)
    if args.rescore:
        records = [benchmark.complete(record, (known or {}).get(str(record["id"]))) for record in records]
    name = benchmark.name(facts["data"])
    statistics, scored = benchmark.score(records, args.protocol, name)
    score = {"benchmark": name, "metric": "accuracy", **statistics, "missing": missing, "rescored": args.rescore}
    write_score(folder, score | {"shots_data": args.shots_data}, facts, scored)
    low, high = (100 * bound for bound in statistics["interval"])
    print(
        f"{name} {100 * statistics['score']:.2f}% of {statistics['n']} (95% {low:.1f} to {high:.1f}"
        f"{benchmark.detail(statistics)}) → {folder / SCORE}"
    )
    return 0


def summarise_problems(scored: list[dict]) -> dict:
    """Return the statistics over problems of lines with "id" and "correct"; several samples of a problem count as their mean."""
    by_problem: dict[str, list[bool]] = {}
    for line in scored:
        by_problem.setdefault(str(line["id"]), []).append(line["correct"])
    return summarise([sum(rights) / len(rights) for rights in by_problem.values()])


def count_truncated(records: list[dict]) -> int | None:
    """Return how many completions were cut at the token limit; None if no record says how it ended."""
    ends = [record.get("finish_reason") for record in records]
    return ends.count("length") if any(ends) else None


def scored_line(record: dict, **values: object) -> dict:
    """Return one line of scored.jsonl."""
    return {name: record[name] for name in ("id", "sample") if name in record} | values
