"""Few-shot prompts and readings comparable with lm-evaluation-harness (0.4.13): its gsm8k and minerva_math tasks.

No file of this repository contains the examples: they are read when needed, from the training split or a file of the user. If
the file has exactly as many rows as the protocol shows, every problem gets these rows in their order (the harness' sampler
"first_n"). If it has more, each problem gets its own draw, and the draws equal the harness' (its default sampler and seed): with
the same training split and the same problems from the first on, every prompt equals the harness' byte for byte. minerva_math shows
four fixed examples there, printed in Lewkowycz et al. 2022 (arXiv 2206.14858), appendix D: give a file with these for its prompts.
"""

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ba_lora.data.sources import read_table
from ba_lora.errors import UserError
from ba_lora.inference.requests import Request, Sampling, make_plain_request, make_request
from ba_lora.inference.subject import Subject

from ..harness.ask import ask, subject_of

DRAW_SEED = 1234  # the harness' default for few-shot draws
ENDING = "Final Answer: The final answer is"  # followed by the answer and:
HOPE = "I hope it is correct."


class FewShot(NamedTuple):
    """One task of the harness: `shots` examples with two fields, the form of the question, stop strings, and the token limit."""

    fields: tuple[str, str]
    form: str
    shots: int
    stop: tuple[str, ...]
    max_new_tokens: int
    training: tuple[str, ...]  # hub ids of the training split


GSM8K = FewShot(
    ("question", "answer"),
    "Question: {}\nAnswer:",
    5,
    ("Question:", "</s>", "<|im_end|>"),
    256,
    ("openai/gsm8k:main",),
)
MINERVA_MATH = FewShot(
    ("problem", "solution"),
    "Problem:\n{}\n\nSolution:",
    4,
    ("Problem:",),
    256,
    tuple(
        f"EleutherAI/hendrycks_math:{subject}"
        for subject in (
            *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
            *("number_theory", "prealgebra", "precalculus"),
        )
    ),
)


def add_option(parser: argparse.ArgumentParser, layout: FewShot) -> None:
    """Add --shots_data."""
    parser.add_argument(
        "--shots_data",
        metavar="FILE",
        help=f"few-shot protocol: examples with the fields {' and '.join(layout.fields)}; {layout.shots} rows are shown in "
        f"order; with more rows each problem gets its own draw (default: the training split on the hub)",
    )


def check_option(args: argparse.Namespace, protocol: str) -> None:
    """Refuse --shots_data if it has no effect; `protocol` is the one with examples."""
    if args.shots_data and (args.rescore or args.protocol != protocol):
        raise UserError(f"--shots_data {args.shots_data} is used when --protocol {protocol} asks a model; leave it out")


def load_shots(layout: FewShot, data: str | None = None) -> list[tuple[str, str]]:
    """Return the examples as (question, answer). Raises UserError naming the source if a field is missing or there are too few."""
    shots = []
    for source in (data,) if data else layout.training:
        table = read_table(source, split="train")
        for number, row in table.rows:
            for field in layout.fields:
                if not isinstance(row.get(field), str):
                    raise UserError(
                        f"{table.source}, row {number} has no text '{field}' (it has: {', '.join(row)}); an example needs "
                        f"{' and '.join(layout.fields)}"
                    )
            shots.append(tuple(row[field] for field in layout.fields))
    if len(shots) < layout.shots:
        raise UserError(
            f"{data or layout.training[0]} has {len(shots)} rows, and the protocol shows {layout.shots} examples; give as many"
        )
    if layout is MINERVA_MATH:
        shots = [(problem, _with_ending(solution)) for problem, solution in shots]
    return shots


def _with_ending(solution: str) -> str:
    """Return a solution of MATH with the sentence that the model has to learn from the examples."""
    from .latex import read_reference

    if ENDING in solution:
        return solution
    return f"{solution}\n{ENDING} ${read_reference(solution) or solution}$. {HOPE}"


def draw(layout: FewShot, shots: Sequence) -> Iterator[list]:
    """Yield the examples of the first problem, of the second, and so on without end."""
    generator = random.Random(DRAW_SEED)
    while True:
        yield list(shots) if len(shots) == layout.shots else generator.sample(shots, layout.shots)


def write_prompt(layout: FewShot, shots: Sequence[tuple[str, str]], question: str) -> str:
    """Join the examples and the question, separated by blank lines."""
    # not str.format: LaTeX is full of braces
    shown = [layout.form.replace("{}", asked) + " " + answer + "\n\n" for asked, answer in shots]
    return "".join(shown) + layout.form.replace("{}", question)


def make_requests(layout: FewShot, subject: Subject, problems: Sequence[dict], shots: Sequence) -> list[Request]:
    """Return one request per problem ({"id", the layout's first field, "reference"}), in order.

    The text is encoded in one piece, with the beginning-of-sequence token if the tokenizer adds one; no template is applied.
    """
    requests = []
    for problem, shown in zip(problems, draw(layout, shots), strict=False):
        prompt = write_prompt(layout, shown, problem[layout.fields[0]])
        requests.append(make_plain_request(subject, problem["id"], prompt, problem["reference"]))
    return requests


def ask_with_examples(
    args: argparse.Namespace, folder: Path, layout: FewShot, protocol: str, problems: Sequence[dict], data: str
) -> tuple[list[dict], dict]:
    """Ask `problems` with the layout's examples if --protocol is `protocol`, else with the run's template; like `ask`."""
    if args.protocol != protocol:
        subject = subject_of(args)
        requests = [make_request(subject, p["id"], p[layout.fields[0]], p["reference"]) for p in problems]
        return ask(args, folder, subject, requests, Sampling(), data)
    shots = load_shots(layout, args.shots_data)
    subject = subject_of(args)
    requests = make_requests(layout, subject, problems, shots)
    records, facts = ask(args, folder, subject, requests, Sampling(stop=layout.stop), data)
    return records, facts | {"template": None}


# Reading, as in the harness

_STRICT = re.compile(r"#### (-?[0-9.,]+)", re.ASCII)
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+", re.ASCII)
_MINERVA = re.compile("(.*?). " + HOPE)  # follows ENDING; its periods match any character, as in the harness


def read_strict(completion: str) -> str | None:
    """gsm8k, "strict-match": read the first number after "#### "."""
    found = _STRICT.search(completion)
    return found[1] if found else None


def read_flexible(completion: str) -> str | None:
    """gsm8k, "flexible-extract": read the last text that looks like a number, including "$", ",", "1." and "..."."""
    found = _FLEXIBLE.findall(completion)
    return found[-1] if found else None


def same_gsm8k(answer: str | None, reference: str) -> bool:
    """Return True if an answer and a reference ("… #### N", or N) are equal without commas, dollars and a final period."""
    return answer is not None and _bare(answer) == _bare(reference)


def _bare(text: str) -> str:
    return text.replace(",", "").replace("$", "").rpartition("#### ")[2].removesuffix(".").lower()


def read_minerva(completion: str) -> str | None:
    """minerva_math: read the first "Final Answer: The final answer is … I hope it is correct.", without its dollars."""
    for line in (completion + HOPE).split("\n"):
        start = line.find(ENDING)
        # if the first such sentence of a line does not end on that line, no other does: each line is read once
        if start >= 0 and (found := _MINERVA.match(line, start + len(ENDING))):
            return found[1].strip().strip("$")
    return None
