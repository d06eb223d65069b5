"""Shared code of the classification benchmarks: opens a trained classifier, computes its logits on labelled texts, writes files.

D/predictions.jsonl has one line per example, {"id", "logits", "label"}, from which every metric can be recomputed.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ba_lora.data.glue import TASKS, Examples, Task
from ba_lora.errors import UserError, choose, short
from ba_lora.files import KINDS, atomic_write, check_kinds, read_json, read_json_lines
from ba_lora.folders.checksums import read_record
from ba_lora.folders.ownership import claimed
from ba_lora.machine.devices import device

PREDICTIONS = "predictions.jsonl"


class Classifier(NamedTuple):
    """model: in evaluation mode. task: the training's. max_length: token limit per example in training. special_tokens_in_text:
    how training treated special tokens in texts."""

    model: object
    tokenizer: object
    task: Task
    max_length: int
    base: str
    special_tokens_in_text: str = "text"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options shared by both commands."""
    add = parser.add_argument
    add("--model", metavar="RUN", help="the folder of a training run with --task")
    add("--output_dir", metavar="D", help="folder for the results (default: RUN/eval/NAME)")
    add("--overwrite", action="store_true", help="replace the results that are there")
    add("--limit", type=int, metavar="N", help="only the first N examples")
    add("--batch_size", type=int, default=64, help="examples at once (default: %(default)s)")
    add("--dtype", default="float32", help="float32, bfloat16, float16, or auto: as saved (default: %(default)s)")
    add("--debug", action="store_true", help="show the traceback of an error")


def check_options(args: argparse.Namespace) -> None:
    """Refuse invalid options before anything slow starts."""
    for option in ("limit", "batch_size"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} is {value}; it must be at least 1")


@contextmanager
def output_folder(args: argparse.Namespace, default: str, result: str, kind: str = "evaluation") -> Iterator[Path]:
    """Reserve --output_dir, or `default` in the run, for this process during the block, with the checks of
    `options.output_folder`. result: the file that only --overwrite replaces."""
    if args.model:
        task_in(args.model)
    folder = Path(args.output_dir) if args.output_dir else Path(args.model) / "eval" / default
    source = Path(args.rescore).resolve() if getattr(args, "rescore", None) else None
    beside = (source.name,) if source and source.parent == folder.resolve() else ()
    with claimed(folder, kind, passed=beside):
        if (folder / result).exists() and not args.overwrite:
            raise UserError(f"{folder} already holds {result}; add --overwrite or name another --output_dir")
        yield folder


def task_in(run: str) -> dict:
    """Return the task in a classifier's run.json. Raises UserError for any other folder."""
    record = Path(run) / "run.json"
    kinds = {"task?": "an object"}
    task = read_json(record, kinds=kinds).get("task") if record.is_file() else None
    if not task:
        raise UserError(
            f"--model {run} is not a run folder of a classifier; train one with: python train.py --task NAME"
        )
    check_kinds(task, f"{record}: task", {"name": "a text", "labels?": "a list of texts"})
    return task


def open_classifier(run: str, dtype: str = "float32") -> Classifier:
    """Open the classifier of a training run. Raises UserError for any other folder."""
    from ba_lora.methods.save import find_run, load
    from ba_lora.models import load_tokenizer

    record, described = Path(run) / "run.json", task_in(run)
    check_kinds(described, f"{record}: task", {"max_length": "a whole number"})
    base = find_run(run)[1]
    task = TASKS[choose("task", described["name"], TASKS)]
    if tuple(described["labels"] or ()) != task.labels:
        raise UserError(
            f"{record}: the labels {described['labels']} are not those of {task.name} ({list(task.labels)})"
        )
    model = load(run, dtype=dtype)
    in_text = described.get("special_tokens_in_text", "control")  # as in earlier versions, which did not record it
    return Classifier(model.to(device()), load_tokenizer(base), task, described["max_length"], base, in_text)


def predict(classifier: Classifier, examples: Examples, batch_size: int) -> tuple[np.ndarray, float]:
    """Return (logits (N, D) in the order of the examples, seconds). Batches hold examples of similar length."""
    import torch

    from ba_lora.data.pairs import PadPairs, encode_texts

    in_text = classifier.special_tokens_in_text
    encoded = encode_texts(classifier.tokenizer, examples.texts, classifier.max_length, in_text)
    encoded.pop("truncated")
    samples = [{name: values[row] for name, values in encoded.items()} for row in range(len(examples.ids))]
    order = sorted(range(len(samples)), key=lambda row: len(samples[row]["input_ids"]))
    collate, device = PadPairs(classifier.tokenizer), next(classifier.model.parameters()).device
    logits, started = None, time.perf_counter()
    with tqdm(total=len(order), desc=f"{examples.task.name} {examples.split}", unit="example", disable=None) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = {key: value.to(device) for key, value in collate([samples[row] for row in rows]).items()}
            with torch.inference_mode():
                made = classifier.model(**batch).logits.float().cpu().numpy()
            logits = np.zeros((len(order), made.shape[1]), dtype=np.float32) if logits is None else logits
            logits[rows] = made
            bar.update(len(rows))
    return logits, time.perf_counter() - started


def write_predictions(folder: Path, examples: Examples, logits: np.ndarray) -> None:
    """Write D/predictions.jsonl atomically."""
    with atomic_write(folder / PREDICTIONS) as file:
        for key, row, label in zip(examples.ids, logits.tolist(), examples.labels, strict=True):
            file.write(json.dumps({"id": key, "logits": row, "label": label}) + "\n")


def read_predictions(path: str | Path, task: Task) -> tuple[np.ndarray, list]:
    """Return (logits (N, D), labels) of a predictions.jsonl. Raises UserError naming an invalid line."""
    logits, labels, width = [], [], len(task.labels) or 1
    if not Path(path).is_file():
        raise UserError(f"--rescore {path} does not exist; give a {PREDICTIONS}")
    if Path(path).name == PREDICTIONS and Path(path).with_name("score.json").is_file():
        read_record(Path(path).with_name("score.json"), (PREDICTIONS,))
    remedy = "each line needs id, logits and label"
    for number, record in enumerate(read_json_lines(path, {"logits": "a list", "label": "a number"}, remedy), 1):
        row, label = record["logits"], record["label"]
        if len(row) != width or not all(KINDS["a number"](value) for value in row):
            raise UserError(f"{path}, line {number}: the logits are {short(row)}, {width} numbers are needed; {remedy}")
        if task.labels and label not in range(width):
            raise UserError(f"{path}, line {number}: the label is {short(label)}; it must be from 0 to {width - 1}")
        logits.append(row)
        labels.append(label)
    if not logits:
        raise UserError(f"{path} is empty")
    return np.array(logits), labels
