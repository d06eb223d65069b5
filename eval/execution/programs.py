"""Shared code of the code benchmarks: tasks, judging of their programs in the sandbox, pass@k.

`eval.execution.completions` finds the program in a completion; a completion that cannot be read is wrong, and only its task fails.
"""

import argparse
import ast
import builtins
import statistics
from collections import Counter
from math import comb
from pathlib import Path
from typing import NamedTuple

from ba_lora.errors import UserError

from ..harness.lines import count_missing
from ..harness.scores import SCORE, summarise, write_score
from .completions import SECONDS as READING_SECONDS
from .completions import read_all
from .definitions import NOT_PYTHON, parses
from .sandbox import STATUSES, Limits, Program, Result, find_box, run

UNREAD = Result("error", f"reading the completion took more than {READING_SECONDS} s or ended its process", 0.0)
KS = (1, 5, 10, 100)  # the values of k for which pass@k is reported, if there are enough samples


class Task(NamedTuple):
    """One task of a benchmark. The other fields are as in Program.

    text: the task in words. prompt: the code that a completion may continue, "" if it must be a whole program.
    """

    id: str | int
    tests: str
    names: tuple[str, ...]
    text: str = ""
    prompt: str = ""
    setup: str = ""
    one_process: bool = False
    reference: str | None = None

    def job(self, source: str) -> Program:
        """Return a program with this task's tests."""
        return Program(source, self.tests, self.names, self.setup, self.one_process)


# Tests


def names_in_tests(tests: str, setup: str = "", reference: str = "", place: str = "the tests") -> tuple[tuple, bool]:
    """Return (the program's names that tests use, whether they need the program in their own process).

    They need it if they create objects of its classes, or use one of its names other than by calling it. A builtin's name is the
    program's if the reference defines it, or if the tests call nothing else. Raises UserError naming `place` for tests that
    are not Python, or that leave open which function is to be written.
    """
    tree = parse_tests(setup + "\n" + tests, place)
    nodes = list(ast.walk(tree))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    used = Counter(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    called = Counter(node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    body = ast.parse(reference).body if parses(reference) else []
    functions = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            functions |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    names = tuple(sorted(set(used) - bound - (set(vars(builtins)) - functions)))
    if not names:
        names = tuple(sorted(set(called) - bound))  # builtins
        if len(names) != 1:
            call = f"call no function but the builtins {', '.join(names)}" if names else "call no function"
            raise UserError(
                f"{place}: the tests {call}, so the name of the function to write is not known; give the row its 'code', or "
                f"remove it"
            )
    if not body and len(names) > 1:  # no reference: beside a function, Node is a class, but Sum alone is the function
        classes |= {name for name in names if name[:1].isupper()}
    return names, any(name in classes or used[name] != called[name] for name in names)


def parse_tests(tests: str, place: str) -> ast.Module:
    """Return the tree of a task's tests. Raises UserError naming `place` if they are not Python."""
    try:
        return ast.parse(tests)
    except NOT_PYTHON as error:
        said = getattr(error, "msg", None) or f"{type(error).__name__}: {error}"
        raise UserError(f"{place}: the tests are not Python ({said}); fix or remove the task") from None


# Judging and scoring


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the option that only the code benchmarks have."""
    parser.add_argument(
        "--unsafe_execution",
        action="store_true",
        help="without a working bubblewrap: run model-written code with your rights, under resource limits only",
    )


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate 1 − C(n − c, k) / C(n, k) that one of k samples passes (Chen et al. 2021, eq. 1)."""
    if not 0 < k <= samples:
        raise UserError(f"pass@{k} needs at least {k} samples per task, there are {samples}; raise --samples")
    return 1 - comb(samples - passed, k) / comb(samples, k)


def score_records(
    records: list[dict],
    tasks: dict[str, Task],
    *,
    unsafe: bool = False,
    limits: Limits = Limits(),  # noqa: B008
) -> tuple[dict, list[dict]]:
    """Judge records of {"id", "completion"} → (the statistics of score.json, the lines of scored.jsonl).

    "score" is the mean of pass@1 over the tasks with a record.
    """
    if unknown := [record["id"] for record in records if str(record["id"]) not in tasks]:
        raise UserError(f"id {unknown[0]} is not a task of the data ({len(tasks)} tasks, for example {min(tasks)})")
    asked = [(record, tasks[str(record["id"])]) for record in records]
    readings = read_all([(record["completion"], task.names, task.prompt) for record, task in asked])
    jobs = [task.job(reading.source) for (_, task), reading in zip(asked, readings, strict=True) if reading]
    judged = iter(run(jobs, unsafe=unsafe, limits=limits))
    results = [next(judged) if reading else UNREAD for reading in readings]
    outcomes: dict[str, list[bool]] = {}
    for record, result in zip(records, results, strict=True):
        outcomes.setdefault(str(record["id"]), []).append(result.status == "passed")
    fewest = min(map(len, outcomes.values()))
    estimates = {
        str(k): statistics.fmean(pass_at_k(len(task), sum(task), k) for task in outcomes.values())
        for k in KS
        if k <= fewest
    }
    rates = [sum(task) / len(task) if len(task) > 1 else task[0] for task in outcomes.values()]
    ends = [record.get("finish_reason") for record in records]
    counts = Counter(result.status for result in results)
    score = summarise(rates) | {
        "stderr": statistics.pstdev(rates) / len(rates) ** 0.5,
        "pass_at_k": estimates,
        "samples": fewest,
        "statuses": {status: counts[status] for status in STATUSES},
        "n_unparsable": sum(not (reading and reading.parses) for reading in readings),
        "n_truncated": ends.count("length") if any(ends) else None,
        "one_process": [tasks[key].id for key in outcomes if tasks[key].one_process],
        "sandbox": find_box(unsafe).name,
        "limits": limits._asdict(),
    }
    scored = [
        {"id": record["id"]}
        | ({"sample": record["sample"]} if "sample" in record else {})
        | {"correct": result.status == "passed", "status": result.status, "detail": result.detail}
        for record, result in zip(records, results, strict=True)
    ]
    return score, scored


def finish(
    args: argparse.Namespace, folder: Path, benchmark: str, version: str, tasks: list[Task], known: list, records, facts
) -> int:
    """Score, write the files, and print the final line of a command."""
    if args.rescore and args.limit:  # the first lines, of whichever tasks
        known = [record["id"] for record in records]
    missing = count_missing(records, known, args.rescore)
    score, scored = score_records(records, {str(task.id): task for task in tasks}, unsafe=args.unsafe_execution)
    head = {"benchmark": benchmark, "metric": "pass@1", **score, "protocol": args.protocol, "protocol_version": version}
    write_score(folder, head | {"missing": missing, "rescored": args.rescore}, facts, scored)
    low, high = (100 * bound for bound in score["interval"])
    together = f", {len(score['one_process'])} of them in one process with their tests" if score["one_process"] else ""
    print(
        f"{benchmark} {100 * score['score']:.2f}% of {score['n']}{together} (95% {low:.1f} to {high:.1f}) → {folder / SCORE}"
    )
    return 0
