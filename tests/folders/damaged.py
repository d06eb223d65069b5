"""One file of each kind that the project writes and reads again, and how each is read: the files that test_damage.py and
test_changed_on_purpose.py damage."""

import json
import os
import shutil
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from transformers import TrainerState

from ba_lora import models
from ba_lora.card import write_card
from ba_lora.data.cache import load_samples
from ba_lora.data.formats import exchange
from ba_lora.data.glue import TASKS
from ba_lora.data.samples import Samples
from ba_lora.data.templates import default_template, make_template
from ba_lora.experiments.matrix import read_experiment, tuned_rates
from ba_lora.experiments.pool import do_run
from ba_lora.experiments.results import collect, of_run, read_results
from ba_lora.features import record as tsne_record
from ba_lora.features import tsne
from ba_lora.features.figure import Panel
from ba_lora.features.saver import FeatureSaver
from ba_lora.files import read_json, sealed, unsealed, write_sealed
from ba_lora.folders import checksums
from ba_lora.inference.requests import Request
from ba_lora.methods.attach import attach
from ba_lora.methods.decomposition import Decomposer
from ba_lora.methods.save import export, load
from ba_lora.models import load_model, load_tokenizer
from ba_lora.objective.head import cached_factor
from ba_lora.tiny import MODEL_DIR
from ba_lora.training import checkpoints, run, teacher_cache
from eval.classifiers import classify
from eval.harness import generations as resume
from eval.harness.lines import write_lines
from eval.judging import judge
from tests.common import ROOT, classifier_batch, collate, move, ragged_samples, small_classifier, small_llama

OPTIONS = "limit: 16, effective_batch_size: 4, micro_batch_size: 4, rank: 2, save_steps: 2, logging_steps: 1"
EXPERIMENT = f"""
name: small
config: {ROOT}/configs/nlg/tiny.yaml
methods:
  lora: {{{OPTIONS}, learning_rate: 1e-3, method: lora}}
  ba-lora: {{{OPTIONS}, learning_rate: 1e-3, method: ba-lora}}
seeds: [42]
evaluate:
  test: {{data: "tinymath:test", limit: 3}}
"""
RUN, OTHER = "runs/small/lora-s42", "runs/small/ba-lora-s42"
IDS = torch.arange(3, 11)[None]
CONFIG = {"model": "m", "model_hash": "1" * 64, "seed": 0}
WANTED = {(str(number), 0): Request(number, f"What is {number}?", [1], None) for number in range(3)}
TRAINED_ON = [exchange(f"What is {number} + {number}?", f"It is {2 * number}.") for number in range(8)]


# The files to be damaged: written once, by the project itself.


def make_home(home):
    """Fill a folder with at least one file of each kind, and a second one of each that belongs to something else."""
    (home / "small.yaml").write_text(EXPERIMENT)
    experiment = read_experiment(home / "small.yaml", home / "runs")
    before = os.environ["BA_LORA_CACHE"]
    os.environ["BA_LORA_CACHE"] = str(home / "cache")
    try:
        for each in experiment.runs:
            do_run(replace(each, is_trial=True), experiment.evaluations, True)
        encoded(home), encoded(home, TRAINED_ON[:4]), factor(home), factor(home, 1)
    finally:
        os.environ["BA_LORA_CACHE"] = before
    (results,) = collect(experiment, home / "results")
    (home / "results/other").mkdir()
    lines = [sealed(unsealed(line, "") | {"experiment": "other"}) for line in results.read_bytes().splitlines()]
    (home / "results/other/results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("small", "other"):
        write_sealed(home / f"results/{name}/tuning.json", {"experiment": name, "best": {"lora": len(name) / 1000}})
    triplets(home), triplets(home, 1), teacher(home / "teacher"), teacher(home / "teacher2", 1)
    for number, name in enumerate(("own", "own2")):
        _models(home / name, number)
    shutil.copytree(MODEL_DIR.parent, home / "tiny", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, said in (("lines", "It is 1."), ("lines2", "It is 2.")):
        _evaluation(home / name, said, CONFIG if name == "lines" else CONFIG | {"model_hash": "2" * 64})
    for number, name in enumerate(("features", "features2")):
        _features(home / name, number)
    for number, name in enumerate(("tsne", "tsne2")):
        planes = torch.randn(12, 2, generator=torch.Generator().manual_seed(number)).numpy().round(3)
        panel = Panel("a", "final", np.arange(12) % 2, planes, {"silhouette": 0.5 - number / 4}, {"silhouette": 0.25})
        facts = {"classes": ["x", "y"], "pooling": None, "examples": 12, "perplexity": 3.0, "seed": number}
        tsne_record.write_record([panel], range(12), facts, home / name)


def _models(folder, seed):
    """Adapters, in our own format and of a classifier, and a whole model."""
    for name, model in (("bitfit", small_llama(attention_bias=True)), ("full", small_llama(seed))):
        student = attach(model, name, rank=2, alpha=2)
        move(student)
        with torch.no_grad():
            next(p for p in student.parameters() if p.requires_grad).add_(seed)
        export(student, folder / name)
    student = attach(small_classifier("bert-large"), "lora", rank=2, alpha=2, head=["classifier"], seed=seed)
    move(student)
    with torch.no_grad():
        next(p for p in student.parameters() if p.requires_grad).add_(seed)
    export(student, folder / "classifier", {"data": f"set {seed}"})


def _evaluation(folder, said, config):
    """A growing and a complete generations.jsonl, a judgment, and a classifier's predictions with their score."""
    made = {"completion": said, "finish_reason": "stop", "tokens": 4}
    records = [{"id": request.id, "prompt": request.prompt} | made for request in WANTED.values()]
    for place in (folder, folder / "ended"):
        with resume.begin(place, config, fresh=True) as append:
            for record in records:
                append(record)
    write_lines(folder / "ended/generations.jsonl", records)
    resume.seal(folder / "ended", config, records)
    who, task = _judged(said)
    line = judge._line(who, task, judge.key_of(who, task), [f"{said} [[5]]"])
    (folder / "judgments.jsonl").write_text(json.dumps(line) + "\n")
    row = {"id": 1, "logits": [0.5, 0.25 * len(config)], "label": int(said[6]) - 1}
    (folder / classify.PREDICTIONS).write_text(json.dumps(row) + "\n")
    checksums.write_record(folder / "score.json", {"metric": "accuracy", "score": 1.0}, (classify.PREDICTIONS,))


def _judged(said):
    task = judge.Task(81, 1, "single-v1", [{"role": "user", "content": f"Judge: {said}"}])
    return judge.Judge("judge", {"temperature": 0}), task


def _features(folder, seed):
    model = small_classifier("bert-large", seed)
    batch = classifier_batch(12, 6)
    rows = [
        {"input_ids": ids.tolist(), "labels": int(label)}
        for ids, label in zip(batch["input_ids"], batch["labels"], strict=True)
    ]

    def together(some):
        return {
            "input_ids": torch.tensor([row["input_ids"] for row in some]),
            "labels": torch.tensor([row["labels"] for row in some]),
        }

    saver = FeatureSaver(model, rows, together, [], folder, labels=["x", "y", "z"])
    saver.on_train_end(None, TrainerState(is_world_process_zero=True), None)


# How the commands read each file. The result must equal that of intact files, unless a message was given.


def opened(home):
    with torch.no_grad():
        return load(home / RUN)(input_ids=IDS).logits


def _own(name, home):
    base = {"bitfit": lambda: small_llama(attention_bias=True), "full": lambda: None}.get(
        name, lambda: small_classifier("bert-large")
    )
    batch = {"input_ids": IDS}
    with torch.no_grad():
        return load(home / "own" / name, base())(**batch).logits


def measured(home):
    return of_run(
        read_experiment(home / "small.yaml", home / "runs").runs[0], read_experiment(home / "small.yaml", home / "runs")
    )


def table(home):
    experiment = read_experiment(home / "small.yaml", home / "no-runs")
    rows = [
        (each.variant, each.seed, {n: s.score for n, s in each.scores.items()}, each.training)
        for each in read_results(experiment, home / "results")
    ]
    return rows, tuned_rates("small", home / "no-runs", home / "results")


def continued(home):
    """The checkpoint from which `train --resume` continues."""
    arguments = read_experiment(home / "small.yaml", home / "runs").runs[0].arguments
    record = read_json(home / RUN / "run.json")
    found = run._checkpoint(replace(arguments, resume=True), home / RUN, True, record)
    return found and Path(found).name


def started(home):
    return sorted(checkpoints.read_start(home / RUN / "checkpoints" / checkpoints.START).items()), continued(home)


@cache
def _tokenizer():
    return load_tokenizer("tiny")


def encoded(home, conversations=TRAINED_ON):
    tokenizer = _tokenizer()
    samples, report = load_samples(tokenizer, make_template(default_template("tiny"), tokenizer), conversations, 64)
    return list(samples), report


def factor(home, seed=0):
    return cached_factor(small_llama(seed).lm_head)


def triplets(home, seed=0):
    matrix = torch.randn(12, 9, generator=torch.Generator().manual_seed(seed))
    return tuple(Decomposer("pissa", 4, cache=home / "decompositions")(matrix)[0])


def teacher(folder, seed=0):
    samples = ragged_samples(6)
    options = {"temperature": 2.0, "dtype": "float32", "collate": collate}
    cache = teacher_cache.prepare(folder, small_llama(seed), Samples.from_list(samples), "d" * 64, **options)
    return cache.rows([0, 1, 2, 3, 4, 5])


def embedded(home):
    places = {"MODEL_DIR": home / "tiny/model", "CHECKSUMS": home / "tiny/checksums.json"}
    with mock.patch.multiple(models, **places), torch.no_grad():
        model, tokenizer = load_model("tiny"), load_tokenizer("tiny")
        return model(input_ids=IDS).logits, tokenizer("What is 3 + 4?")["input_ids"], model.generation_config.to_dict()


def unfinished(home):
    return resume.check(home / "lines", CONFIG, WANTED)


def unscored(home):
    return resume.check(home / "lines/ended", CONFIG, WANTED)


def judgments(home):
    wanted = judge.key_of(*_judged("It is 1."))
    found = judge.read_judgments([home / "lines/judgments.jsonl"])
    return {key: line["replies"] for key, line in found.items() if key == wanted}


def drawn(home):
    return [(p.run, p.step, p.labels, p.plane, p.original, p.flat) for p in tsne_record.read_record(home / "tsne")[0]]


def featured(home):
    return tsne.read_features(tsne._features_folder(str(home / "features")), "final")


class Kind(NamedTuple):
    """file, other: patterns of files in the home. read: the reader's result. parts: the parts of the home copied for it."""

    file: str
    other: str
    read: object

    @property
    def part(self):
        return self.file.split("/")[0]


def _in_run(name, read):
    return Kind(f"{RUN}/{name}", f"{OTHER}/{name}", read)


def _kinds():
    card = lambda home: write_card(home / RUN).read_text()  # noqa: E731
    for name in ("run.json", "metrics.jsonl", "eval/test/score.json", "adapter/adapter_config.json"):
        yield f"{name}, for the card", _in_run(name, card)
    for name in (
        "run.json",
        "metrics.jsonl",
        "measures.json",
        *(f"eval/test/{n}" for n in ("score.json", "scored.jsonl", "generations.jsonl")),
    ):
        yield f"{name}, for the tables", _in_run(name, measured)
    for name in ("adapter_config.json", "adapter_model.safetensors", "checksums.json"):
        yield f"adapter/{name}", _in_run(f"adapter/{name}", opened)
    for name in (
        "trained.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        *checkpoints.BESIDE,
        "manifest.json",
    ):
        yield f"checkpoint/{name}", _in_run(f"checkpoints/checkpoint-4/{name}", continued)
    yield "start.safetensors", _in_run("checkpoints/start.safetensors", started)
    for folder, names in {
        "bitfit": ("adapter.safetensors", "ba_lora.json", "checksums.json"),
        "full": ("model.safetensors", "config.json", "checksums.json"),
        "classifier": ("task.json", "adapter_model.safetensors", "checksums.json"),
    }.items():
        for name in names:
            yield f"{folder}/{name}", Kind(f"own/{folder}/{name}", f"own2/{folder}/{name}", partial(_own, folder))
    for name in (
        *("model/model.safetensors", "model/config.json", "model/tokenizer.json", "model/tokenizer_config.json"),
        *("model/generation_config.json", "checksums.json"),
    ):
        yield f"tiny/{name}", Kind(f"tiny/{name}", "own2/full/checksums.json", embedded)
    for name in ("input_ids.npy", "labels.npy", "offsets.npy", "report.json", "checksums.json"):
        yield f"samples/{name}", Kind(f"cache/samples/*/{name}", "", encoded)
    yield "head cache", Kind("cache/heads/*/factor.safetensors", "", factor)
    yield "decomposition cache", Kind("decompositions/*.safetensors", "", triplets)
    for name in ("rows-00000.safetensors", "cache.json"):
        yield (
            f"teacher cache/{name}",
            Kind(f"teacher/{name}", f"teacher2/{name}", lambda home: teacher(home / "teacher")),
        )
    for name in ("generations.jsonl", "generation.json"):
        yield f"unfinished {name}", Kind(f"lines/{name}", f"lines2/{name}", unfinished)
        yield f"unscored {name}", Kind(f"lines/ended/{name}", f"lines2/ended/{name}", unscored)
    yield "judgments.jsonl", Kind("lines/judgments.jsonl", "lines2/judgments.jsonl", judgments)
    predicted = lambda home: classify.read_predictions(home / "lines" / classify.PREDICTIONS, TASKS["sst2"])  # noqa: E731
    for name in (classify.PREDICTIONS, "score.json"):
        yield f"predictions/{name}", Kind(f"lines/{name}", f"lines2/{name}", predicted)
    for name in ("features_step_final.npy", "labels_step_final.npy", "features.json", "checksums.json"):
        yield f"features/{name}", Kind(f"features/{name}", f"features2/{name}", featured)
    for name in ("scores.json", "coordinates.csv"):
        yield f"t-SNE {name}", Kind(f"tsne/{name}", f"tsne2/{name}", drawn)
    yield "committed results", Kind("results/small/results.jsonl", "results/other/results.jsonl", table)
    yield "tuning.json", Kind("results/small/tuning.json", "results/other/tuning.json", table)


KINDS = dict(_kinds())
GROWING = (unfinished, unscored, judgments)  # lines that are missing are requested again


# How a bit is flipped, and when two values are equal


def flip(content, share):
    place = round(share * (len(content) - 1))
    return content[:place] + bytes([content[place] ^ 1 << (place % 7)]) + content[place + 1 :]


def same(one, other):
    if isinstance(one, torch.Tensor | np.ndarray):
        return type(one) is type(other) and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
