"""What the code benchmarks share: the program in a completion, its judgement in the sandbox, pass@k.

A completion may hold its program in a fence, bare, or among prose, or be the rest of a function that the prompt began.
"""

import argparse
import ast
import builtins
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import NamedTuple

from ba_lora.errors import UserError

from . import common
from .sandbox import STATUSES, Job, Limits, find_box, run

FENCE = re.compile(r"^\s*(?:```+|~~~+).*$")
START = re.compile(r"(?:async )?def \w+\s*\(|class \w+\s*[(:]|@\w|(?:import|from) \w|[A-Za-z_]\w*\s*=")
KS = (1, 5, 10, 100)  # the k of pass@k that are reported where there are so many samples


class Task(NamedTuple):
    """One task of a benchmark. The rest is as in Job.

    text: the task in words. prompt: the code that a completion may continue, "" where it must be a program.
    """

    id: str | int
    tests: str
    names: tuple[str, ...]
    text: str = ""
    prompt: str = ""
    setup: str = ""
    one_process: bool = False
    reference: str | None = None

    def job(self, completion: str) -> Job:
        """The completion's program with this task's tests."""
        source = program_of(completion, self.names, self.prompt)
        return Job(source, self.tests, self.names, self.setup, self.one_process)


# The program in a completion


def program_of(completion: str, names: Sequence[str], prompt: str = "") -> str:
    """The program that a completion holds; it should define `names`.

    With a `prompt`, a completion that does not define them continues it, verbatim where the two make Python; one that does
    follows what the prompt has before the function (imports, helpers). Fenced blocks go before bare text, and of several the
    first that defines a name counts, after the declarations of those before it. Prose around bare code is cut off, and so are
    assertions outside of functions: they would test the program by what the model believes.
    """
    text = completion.replace("\r\n", "\n")
    outside, blocks = split_fences(text)
    fenced = any(defines(block, names) for block in blocks)
    if prompt and starts_indented(text) and not fenced:
        for rest in (text, outside[0]):  # a fence that the prompt is taken to have opened ends after the function
            if parses(prompt + rest):
                return prompt + rest
    outside, blocks = split_fences(text.lstrip())
    if prompt and not any(defines(part, names) for part in (*outside, *blocks)):
        return _continue(prompt, text, blocks)
    head = before_function(prompt, names) if prompt else ""
    for number, block in enumerate(blocks):
        if defines(block, names):
            return head + "\n\n".join([*map(_declarations, blocks[:number]), without_asserts(block)])
    for part in outside:
        if defines(part, names):
            return head + without_asserts(bare_code(part, names))
    return "\n\n".join(blocks) if blocks else text


def _continue(prompt: str, text: str, blocks: list[str]) -> str:
    if parses(prompt + text) or not blocks:
        return prompt + text
    return prompt + (blocks[0] if starts_indented(blocks[0]) else textwrap.indent(blocks[0], "    "))


def split_fences(text: str) -> tuple[list[str], list[str]]:
    """(the texts outside of fences, the texts inside); the last fence may be open."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if FENCE.match(line):
            parts.append([])
        else:
            parts[-1].append(line)
    texts = ["\n".join(part) for part in parts]
    return texts[::2], [textwrap.dedent(part) if defines(textwrap.dedent(part)) else part for part in texts[1::2]]


def defines(text: str, names: Sequence[str] | None = None) -> bool:
    """Whether a function (or class) of one of these names, or of any, is defined at the left margin."""
    known = "|".join(map(re.escape, names)) if names is not None else r"\w+"
    return re.search(rf"^(?:async )?(?:def|class)\s+(?:{known})\b", text, re.MULTILINE) is not None


def starts_indented(text: str) -> bool:
    """Whether the first line that is not blank is indented."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first[:1] in (" ", "\t")


def before_function(prompt: str, names: Sequence[str]) -> str:
    """What a prompt has before the function that is to be written."""
    known = "|".join(map(re.escape, names))
    starts = [match.start() for match in re.finditer(rf"^(?:async )?def\s+(?:{known})\b", prompt, re.MULTILINE)]
    return prompt[: starts[-1]] if starts else prompt


def bare_code(text: str, names: Sequence[str]) -> str:
    """The longest run of lines that is Python and defines a name, from the first line that looks like code."""
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if START.match(line)]
    for start in starts:
        end = len(lines)
        while end > start:
            try:
                ast.parse("\n".join(lines[start:end]))
                break
            except (SyntaxError, ValueError) as error:
                wrong = start + (getattr(error, "lineno", None) or 1) - 1
                end = max(start, min(wrong, end - 1))
        if defines(code := "\n".join(lines[start:end]), names):
            return code
    return "\n".join(lines[starts[0] :]) if starts else text


def without_asserts(code: str) -> str:
    """The code without assertions and lone names outside of functions; code that does not parse stays as it is."""
    if not parses(code):
        return code
    tree = ast.parse(code)
    kept = [
        node
        for node in tree.body
        if not (isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Name)))
    ]
    return code if len(kept) == len(tree.body) else ast.unparse(ast.Module(kept, []))


def _declarations(code: str) -> str:
    """The imports, functions, classes and constants of a block that comes before the program's."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if not parses(code):
        return ""
    return ast.unparse(ast.Module([node for node in ast.parse(code).body if isinstance(node, kinds)], []))


def parses(code: str) -> bool:
    """Whether the text is Python."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


# Tests


def names_in_tests(tests: str, setup: str = "", reference: str = "", place: str = "the tests") -> tuple[tuple, bool]:
    """(the program's names that tests use, whether they need the program in their own process).

    They do where they make objects of its classes, or use one of its names other than to call it.
    """
    try:
        tree = ast.parse(setup + "\n" + tests)
    except SyntaxError as error:
        raise UserError(f"{place}: the tests are not Python ({error.msg}); mend or remove the task") from None
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
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}  # one may be called like a builtin
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    names = tuple(sorted(set(used) - bound - (set(vars(builtins)) - functions)))
    return names, any(name in classes or used[name] != called[name] for name in names)


# Judging and scoring


def add_options(parser: argparse.ArgumentParser) -> None:
    """The option that the code benchmarks have beside those of `common`."""
    parser.add_argument(
        "--unsafe_execution",
        action="store_true",
        help="where bubblewrap cannot be used: run model-written code with your rights, held by resource limits only",
    )


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The unbiased estimate 1 − C(n − c, k) / C(n, k) of the chance that one of k samples passes (Chen et al. 2021, eq. 1)."""
    if not 0 < k <= samples:
        raise UserError(f"pass@{k} needs at least {k} samples a task, there are {samples}; raise --samples")
    return 1 - comb(samples - passed, k) / comb(samples, k)


def score_records(
    records: list[dict],
    tasks: dict[str, Task],
    *,
    unsafe: bool = False,
    limits: Limits = Limits(),  # noqa: B008
) -> tuple[dict, list[dict]]:
    """Judge records of {"id", "completion"} → (the statistics of score.json, the lines of scored.jsonl).

    "score" is the mean of pass@1 over the tasks that have a record.
    """
    if unknown := [record["id"] for record in records if str(record["id"]) not in tasks]:
        raise UserError(f"id {unknown[0]} is no task of the data ({len(tasks)} tasks, for example {min(tasks)})")
    jobs = [tasks[str(record["id"])].job(record["completion"]) for record in records]
    results = run(jobs, unsafe=unsafe, limits=limits)
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
    score = common.summarise(rates) | {
        "stderr": statistics.pstdev(rates) / len(rates) ** 0.5,
        "pass_at_k": estimates,
        "samples": fewest,
        "statuses": {status: counts[status] for status in STATUSES},
        "n_unparsable": sum(not parses(job.source) for job in jobs),
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
    """Score, write, and print the line that ends a command."""
    if args.rescore and args.limit:  # the first lines, whichever tasks they are of
        known = [record["id"] for record in records]
    missing = common.count_missing(records, known, args.rescore)
    score, scored = score_records(records, {str(task.id): task for task in tasks}, unsafe=args.unsafe_execution)
    head = {"benchmark": benchmark, "metric": "pass@1", **score, "protocol": args.protocol, "protocol_version": version}
    common.write_score(folder, head | {"missing": missing, "rescored": args.rescore}, facts, scored)
    low, high = (100 * bound for bound in score["interval"])
    together = f", {len(score['one_process'])} of them in one process with their tests" if score["one_process"] else ""
    print(
        f"{benchmark} {100 * score['score']:.2f}% of {score['n']}{together} (95% {low:.1f} to {high:.1f}) → {folder / common.SCORE}"
    )
    return 0
