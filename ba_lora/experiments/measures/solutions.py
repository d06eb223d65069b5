"""The loss of a run on reference solutions: mean nats per token of the answer and its end token, given the problem in the run's template.

Token ids are those of the training. What was computed is appended to losses.jsonl, so that a killed measurement continues.
"""

import argparse
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval import gsm8k
from eval.harness.ask import model_facts
from eval.harness.generations import MEASURED, grown
from eval.harness.lines import write_lines
from eval.harness.scores import LOSSES, SCORE, SCORED
from eval.retention import losses, per_token

from ...data.formats import exchange
from ...data.instruction import IGNORED, encode_sample
from ...data.templates import default_template, make_template
from ...files import digest
from ...folders.checksums import write_record
from ...inference.pairs import Encoded
from ...inference.subject import Subject, open_subject, settings_hash
from ...training.command_line import parse
from ..benchmark_data import data_of
from ..matrix import Evaluation, Run

MAX_LENGTH = 1024  # tokens of a problem and its solution; longer ones are cut at the end
BATCH = 16
PROTOCOL, VERSION, LOSS, MEASURE = "template", "1", "solution loss", "solution_loss"


class Asked(NamedTuple):
    """The solution of a problem."""

    id: str
    measure: str
    text: str


def measure_solutions(run: Run, evaluation: Evaluation, name: str, folder: Path) -> dict:
    """Compute the losses that `folder` lacks, and write and return its score.json. name: of the problems, "gsm8k".

    The problems are those beside the local copy that the run was trained on, if any, else those of the hub.
    """
    arguments = run.arguments or parse(["--config", *run.words])
    place = data_of(arguments, [name]).get(name) or gsm8k.GSM8K
    problems = gsm8k.load_problems(place, evaluation.limit)
    model = str(run.folder) if run.arguments else run.model
    subject = open_subject(model, dtype=arguments.dtype)
    if not run.arguments:
        template = make_template(arguments.template or default_template(run.model), subject.tokenizer)
        subject = subject._replace(template=template)
    options = argparse.Namespace(model=model, adapter=None, dtype=arguments.dtype, backend="transformers")
    facts = model_facts(options, subject, place) | {"batch_size": BATCH, "data_hash": digest(problems)}
    asked = [Asked(str(each["id"]), MEASURE, f"{each['question']}\n{each['reference']}") for each in problems]
    grew = grown(
        folder,
        facts | {"settings_hash": settings_hash(subject), "template_text": vars(subject.template)},
        {(each.id, each.measure): each for each in asked},
        MEASURED,
        lambda known: _losses(subject, problems, known),
        lambda number, result: asked[number]._asdict() | {"nats": result[0], "tokens": result[1]},
    )
    nats, tokens = (np.array([each[key] for each in grew.records]) for key in ("nats", "tokens"))
    score = {"benchmark": evaluation.name, "metric": LOSS, **per_token(nats, tokens), "item_measure": MEASURE}
    score |= {"protocol": PROTOCOL, "protocol_version": VERSION, "template": subject.template.name, **facts}
    score |= {"resumed": grew.resumed, "seconds": grew.seconds}
    lines = [
        {"id": each["id"], MEASURE: each["nats"] / each["tokens"], "tokens": each["tokens"]} for each in grew.records
    ]
    (folder / SCORE).unlink(missing_ok=True)
    write_lines(folder / SCORED, lines)
    write_record(folder / SCORE, score, (LOSSES, SCORED))
    return score


def _losses(subject: Subject, problems: list[dict], known: Collection[int]) -> Iterator[tuple[int, tuple[float, int]]]:
    """(number of a problem, (the loss of its solution in nats, its tokens)) of those that are not `known`."""
    encoded, texts = [], []
    for each in problems:
        conversation = exchange(each["question"], str(each["reference"]))
        sample = encode_sample(subject.tokenizer, subject.template, conversation, MAX_LENGTH)
        start = next(place for place, label in enumerate(sample["labels"]) if label != IGNORED)
        encoded.append(Encoded(tuple(sample["input_ids"]), start))
        texts.append(str(each["reference"]))
    return losses(subject.model, subject.tokenizer, texts, encoded, BATCH, known)
