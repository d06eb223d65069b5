"""MBPP: short Python functions to write from a sentence and tests, judged by running the tests (Austin et al. 2021, arXiv 2108.07732).

Protocol "ba-lora": the sentence and the tests in the training prompt, the 500 test tasks (11 to 510); greedy; pass@1. Protocol
"upstream": the same prompt for every task of --data, which should be the 378 tasks of evalplus's MBPP+; with their own tests,
not the added ones. Protocol "base", for models that were not fine-tuned: three worked examples (tasks 2, 3 and 4) before the
task, in the form of the paper. --shots sets zero to three examples for either kind of model; a fine-tuned one gets them as
earlier turns of the conversation. The score is the mean over tasks of the unbiased pass@1; programs run in the sandbox of
`eval.execution.sandbox`.
"""

import argparse
import re
from collections import Counter
from functools import partial
from pathlib import Path

from ba_lora.data.formats import exchange, question
from ba_lora.data.sources import read_table
from ba_lora.errors import UserError, run_cli
from ba_lora.inference.requests import Sampling, make_plain_request, make_request
from ba_lora.inference.subject import Subject

from .execution import programs
from .execution.sandbox import find_box
from .harness.ask import ask, subject_of
from .harness.command import Benchmark, run
from .harness.lines import check_field, read_lines, task_id
from .harness.scores import facts_beside

PROTOCOLS = {"ba-lora": "3", "upstream": "3", "base": "3"}  # name → version
HUB = "google-research-datasets/mbpp:full"
TEST = (11, 510)  # the tasks of the test split
EXAMPLE_TASKS = (2, 3, 4)  # of the prompt split
SHOTS = {"ba-lora": 0, "upstream": 0, "base": 3}  # how many of them a prompt shows
DONE = "[DONE]"
SAMPLING = {"ba-lora": Sampling(), "upstream": Sampling(), "base": Sampling(stop=(DONE,))}
INSTRUCTION = "{text}\nYour function should pass these tests:\n\n{tests}"
EXAMPLE = "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"

EXAMPLES = """\
examples:
  a training run on the 500 test tasks
    python -m eval.mbpp --model runs/ba-lora --data mbpp.jsonl --output_dir runs/ba-lora/eval/mbpp
  a base model, with three examples before each task
    python -m eval.mbpp --model BASE --data mbpp.jsonl --protocol base --output_dir out
  completions from anywhere, one {"id": 11, "completion": "..."} per line; no model
    python -m eval.mbpp --rescore completions.jsonl --data mbpp.jsonl --output_dir out

--data: a file (mbpp.jsonl of github.com/google-research/google-research) or a hub id with the fields text or prompt, code,
task_id and test_list, and test_setup_code or test_imports if the tests need them; default: """


def load_tasks(
    data: str | None = None, span: tuple[int, int] | None = None, split: str = "test"
) -> list[programs.Task]:
    """Return the tasks of a file or a hub id whose number lies in `span` (inclusive), in the order of the data.

    Raises UserError naming the row that lacks a field, and if no task is left.
    """
    table = read_table(data, split=split)
    tasks = [_task(row, f"{table.source}, row {number}") for number, row in table.rows]
    if twice := [key for key, count in Counter(str(task.id) for task in tasks).items() if count > 1]:
        raise UserError(f"{table.source}: task_id {twice[0]} stands for more than one row; keep one of them")
    chosen = [task for task in tasks if span is None or span[0] <= _number(task.id, table.source) <= span[1]]
    if not chosen:
        raise UserError(f"{table.source} has no task from {span[0]} to {span[1]}; name others with --tasks, or all")
    return chosen


def _number(key: str | int, source: str) -> int:
    """Return 11 for 11, "11" and "Mbpp/11"."""
    found = re.fullmatch(r"(?:\w+/)?(\d+)", str(key))
    if not found:
        raise UserError(f"{source}: task_id {key!r} is not a number, so tasks cannot be chosen by it; add --tasks all")
    return int(found[1])


def _task(row: dict, place: str) -> programs.Task:
    """Return the task of a row. `test_imports` may be one text, as in files that went through a table."""
    imports = row.get("test_imports")
    row = row | {"test_imports": [imports] if isinstance(imports, str) else imports}
    kinds = dict.fromkeys(("text", "prompt", "code", "test_setup_code"), "a text")
    kinds |= {"task_id": "a text or a number", "test_list": "a list of texts", "test_imports": "a list of texts"}
    value = {name: check_field(row, name, kind, place) for name, kind in kinds.items()}
    text, tests = value["prompt"] if value["text"] is None else value["text"], value["test_list"]
    if text is None or value["task_id"] is None or not tests:
        raise UserError(f"{place}: a task needs text (or prompt), task_id and test_list (it has: {', '.join(row)})")
    setup = "\n".join([*(value["test_imports"] or []), value["test_setup_code"] or ""]).replace("\r\n", "\n")
    shown = "\n".join(test.strip() for test in tests)
    code = (value["code"] or "").replace("\r\n", "\n")
    names, one_process = programs.names_in_tests(shown, setup, code, place)
    return programs.Task(
        id=task_id(row["task_id"]),
        text=text.strip(),
        tests=shown,
        names=names,
        setup=setup,
        one_process=one_process,
        reference=code,
    )


def read_span(value: str | None, protocol: str) -> tuple[int, int] | None:
    """Return the task numbers of --tasks: "11-510", "7", or "all" (None). Default: the test tasks, for "upstream" all of the data."""
    if value is None:
        return None if protocol == "upstream" else TEST
    if value == "all":
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", value)
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise UserError(f"--tasks {value} is not a range; write --tasks 11-510, a single number, or all")
    return int(found[1]), int(found[2] or found[1])


def worked_examples(data: str, shots: int) -> list[programs.Task]:
    """Return the first `shots` examples that a prompt can show. Raises UserError if the data lacks one."""
    tasks = {_number(task.id, data): task for task in load_tasks(data, split="prompt")} if shots else {}
    if lacking := [number for number in EXAMPLE_TASKS[:shots] if number not in tasks or not tasks[number].reference]:
        raise UserError(
            f"{data} has no task {lacking[0]} with its code, which is to be shown as an example; give a file that has "
            f"tasks {', '.join(map(str, EXAMPLE_TASKS))} with --shots_data"
        )
    return [tasks[number] for number in EXAMPLE_TASKS[:shots]]


def make_requests(subject: Subject, tasks: list[programs.Task], protocol: str, examples: list) -> list:
    """Return requests with the training prompt after the examples as turns, or for "base" examples and task as plain text."""
    if protocol != "base":
        before = [
            message for task in examples for message in exchange(_asked(INSTRUCTION, task), task.reference.rstrip())
        ]
        return [
            make_request(subject, task.id, [*before, *question(_asked(INSTRUCTION, task))], task.reference)
            for task in tasks
        ]
    before = "".join(_asked(EXAMPLE, task) + f"{task.reference}\n{DONE}\n\n" for task in examples)
    prompts = [before + _asked(EXAMPLE, task) for task in tasks]
    return [
        make_plain_request(subject, task.id, prompt, task.reference)
        for task, prompt in zip(tasks, prompts, strict=True)
    ]


def _asked(form: str, task: programs.Task) -> str:
    return form.format(text=task.text, tests=task.tests)


def read_shots(args: argparse.Namespace) -> int:
    """Return the number of examples in a prompt. Raises UserError for an invalid number, and for options without effect."""
    shots = SHOTS[args.protocol] if args.shots is None else args.shots
    if not 0 <= shots <= len(EXAMPLE_TASKS):
        raise UserError(f"--shots is {shots}; it must be from 0 to {len(EXAMPLE_TASKS)}")
    for option in ("shots", "shots_data"):
        if getattr(args, option) is not None and args.rescore:
            raise UserError(
                f"--{option} {getattr(args, option)} has no effect with --rescore, which asks no model; leave it out"
            )
    if args.shots_data and not shots:
        raise UserError(f"--shots_data {args.shots_data} has no effect if no example is shown; add --shots 3")
    return shots


def add_options(parser: argparse.ArgumentParser) -> None:
    programs.add_options(parser)
    parser.add_argument("--tasks", metavar="A-B", help="task numbers, or all (default: 11-510; upstream: all)")
    parser.add_argument("--shots", type=int, metavar="N", help="worked examples in a prompt (default: 0; base: 3)")
    parser.add_argument("--shots_data", metavar="FILE", help="file with the examples (default: --data)")


def _evaluate(args: argparse.Namespace, folder: Path) -> int:
    """Generate if necessary, then score."""
    span = read_span(args.tasks, args.protocol)
    shots = read_shots(args)
    find_box(args.unsafe_execution)
    if args.rescore:
        records = read_lines(args.rescore, ("id", "completion"), args.limit)
        facts = facts_beside(args.rescore)
        facts["data"] = data = args.data or facts.get("data") or HUB
        tasks = load_tasks(data)
        records, known = _in_span(records, tasks, span, data, chosen=args.tasks is not None)
    else:
        data = args.data or HUB
        tasks = load_tasks(data, span)[: args.limit]
        known = [task.id for task in tasks]
        examples = worked_examples(args.shots_data or data, shots)
        subject = subject_of(args)
        requests = make_requests(subject, tasks, args.protocol, examples)
        records, facts = ask(args, folder, subject, requests, SAMPLING[args.protocol], data)
        facts["shots"] = shots
    return programs.finish(args, folder, "mbpp", PROTOCOLS[args.protocol], tasks, known, records, facts)


def _in_span(records: list[dict], tasks: list[programs.Task], span, data: str, *, chosen: bool) -> tuple[list, list]:
    """Return (the records to score, the ids that should be there).

    Every record is scored unless --tasks chose some; without it the test tasks should be there, or all tasks if the file has
    none of the test tasks.
    """
    everything = {str(task.id): task.id for task in tasks}
    inside = {key for key in everything if span is None or span[0] <= _number(key, data) <= span[1]}
    if chosen:
        records = [record for record in records if str(record["id"]) in inside or str(record["id"]) not in everything]
        if not records:
            raise UserError(f"no completion is of a task from {span[0]} to {span[1]}; name others with --tasks, or all")
    elif not any(str(record["id"]) in inside for record in records):
        inside = set(everything)
    return records, [name for key, name in everything.items() if key in inside]


BENCHMARK = Benchmark(
    "eval.mbpp",
    __doc__,
    EXAMPLES + HUB,
    PROTOCOLS,
    1024,
    add_options,
    load=lambda data, base, limit: load_tasks(data or HUB)[:limit],
    evaluate=_evaluate,
)
main = partial(run, BENCHMARK)


if __name__ == "__main__":
    run_cli(main)
