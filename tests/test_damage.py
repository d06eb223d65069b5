"""Every kind of file that the project writes and reads again × truncated, a bit flipped, emptied, swapped with another run's.

Each is refused in one line that names it, or made again or left aside with a line that says so, or it changes nothing. None is
silent. What no checksum of the project's can see is a file of the user's own that stays readable: a flipped bit in a text or a
value of the data, in a YAML file or in a foreign model. It is read as it stands; run.json keeps the hash of what was trained on,
and a resumed run compares it.
"""

import json
import logging
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from ba_lora import checkpoints, checksums, packages, run, teacher_cache, tsne, tsne_record
from ba_lora.adapters import attach, export, load
from ba_lora.arguments import parse
from ba_lora.card import write_card
from ba_lora.data.cache import load_samples
from ba_lora.data.formats import exchange
from ba_lora.data.glue import TASKS
from ba_lora.data.sources import read_table
from ba_lora.data.templates import default_template, make_template
from ba_lora.decomposition import Decomposer
from ba_lora.errors import DamagedFile, UserError
from ba_lora.experiments.matrix import read_experiment, read_file, tuned_rates
from ba_lora.experiments.pool import do_run
from ba_lora.experiments.results import collect, of_run, read_results
from ba_lora.features import FeatureSaver
from ba_lora.files import read_json, write_json, write_sealed
from ba_lora.head import cached_factor
from ba_lora.models import load_model, load_tokenizer
from ba_lora.tiny import MODEL_DIR
from ba_lora.trainer import forget_after
from ba_lora.tsne_figure import Panel
from eval import classify, judge, resume
from eval.common import Request
from eval.results import read_lines, write_lines
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


# What is damaged: made once, by the project itself.


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with one file of each kind at least, and a second one of each that belongs to something else."""
    home = tmp_path_factory.mktemp("home")
    (home / "small.yaml").write_text(EXPERIMENT)
    experiment = read_experiment(home / "small.yaml", home / "runs")
    before = os.environ["BA_LORA_CACHE"]
    os.environ["BA_LORA_CACHE"] = str(home / "cache")
    try:
        for each in experiment.runs:
            do_run(replace(each, is_trial=True), experiment.evaluations, True)
        _samples(home), _samples(home, TRAINED_ON[:4]), _factor(home), _factor(home, 1)
    finally:
        os.environ["BA_LORA_CACHE"] = before
    collect(experiment, home / "results")
    for name in ("small", "other"):
        write_sealed(home / f"results/{name}/tuning.json", {"experiment": name, "best": {"lora": len(name) / 1000}})
    _triplets(home), _triplets(home, 1), _teacher(home / "teacher"), _teacher(home / "teacher2", 1)
    for number, name in enumerate(("own", "own2")):
        _models(home / name, number)
    shutil.copytree(MODEL_DIR, home / "tiny")
    for name, said in (("lines", "It is 1."), ("lines2", "It is 2.")):
        _evaluation(home / name, said, CONFIG if name == "lines" else CONFIG | {"model_hash": "2" * 64})
    for number, name in enumerate(("features", "features2")):
        _features(home / name, number)
    for number, name in enumerate(("tsne", "tsne2")):
        planes = torch.randn(12, 2, generator=torch.Generator().manual_seed(number)).numpy().round(3)
        panel = Panel("a", "final", np.arange(12) % 2, planes, {"silhouette": 0.5 - number / 4}, {"silhouette": 0.25})
        facts = {"classes": ["x", "y"], "pooling": None, "examples": 12, "perplexity": 3.0, "seed": number}
        tsne_record.write_record([panel], range(12), facts, home / name)
    return home


def _models(folder, seed):
    """adapters in our own form and of a classifier, and a whole model."""
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
    """A generations.jsonl that grows and one that is complete, a judgment, and a classifier's predictions with their score."""
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


# How each is read, as the commands read it. The result has to be that of whole files, unless something was said.


def _opened(home):
    with torch.no_grad():
        return load(home / RUN)(input_ids=IDS).logits


def _own(name, home):
    base = {"bitfit": lambda: small_llama(attention_bias=True), "full": lambda: None}.get(
        name, lambda: small_classifier("bert-large")
    )
    batch = {"input_ids": IDS}
    with torch.no_grad():
        return load(home / "own" / name, base())(**batch).logits


def _result(home):
    return of_run(
        read_experiment(home / "small.yaml", home / "runs").runs[0], read_experiment(home / "small.yaml", home / "runs")
    )


def _table(home):
    experiment = read_experiment(home / "small.yaml", home / "no-runs")
    rows = [
        (each.variant, each.seed, {n: s.score for n, s in each.scores.items()}, each.training)
        for each in read_results(experiment, home / "results")
    ]
    return rows, tuned_rates("small", home / "no-runs", home / "results")


def _continued(home):
    """The checkpoint that `train --resume` goes on from."""
    arguments = read_experiment(home / "small.yaml", home / "runs").runs[0].arguments
    record = read_json(home / RUN / "run.json")
    found = run._checkpoint(replace(arguments, resume=True), home / RUN, True, record)
    return found and Path(found).name


def _start(home):
    return sorted(checkpoints.read_start(home / RUN / "checkpoints" / checkpoints.START).items()), _continued(home)


def _samples(home, conversations=TRAINED_ON):
    tokenizer = load_tokenizer("tiny")
    samples, report = load_samples(tokenizer, make_template(default_template("tiny"), tokenizer), conversations, 64)
    return samples.to_list(), report


def _factor(home, seed=0):
    return cached_factor(small_llama(seed).lm_head)


def _triplets(home, seed=0):
    matrix = torch.randn(12, 9, generator=torch.Generator().manual_seed(seed))
    return tuple(Decomposer("pissa", 4, cache=home / "decompositions")(matrix)[0])


def _teacher(folder, seed=0):
    samples = ragged_samples(6)
    options = {"temperature": 2.0, "dtype": "float32", "collate": collate}
    cache = teacher_cache.prepare(folder, small_llama(seed), Dataset.from_list(samples), "d" * 64, **options)
    return cache.rows([0, 1, 2, 3, 4, 5])


def _embedded(home):
    model, tokenizer = load_model(str(home / "tiny")), load_tokenizer(str(home / "tiny"))
    with torch.no_grad():
        return model(input_ids=IDS).logits, tokenizer("What is 3 + 4?")["input_ids"], model.generation_config.to_dict()


def _lines(home):
    return resume.check(home / "lines", CONFIG, WANTED)


def _ended(home):
    return resume.check(home / "lines/ended", CONFIG, WANTED)


def _judgments(home):
    wanted = judge.key_of(*_judged("It is 1."))
    found = judge.read_judgments([home / "lines/judgments.jsonl"])
    return {key: line["replies"] for key, line in found.items() if key == wanted}


def _drawn(home):
    return [(p.run, p.step, p.labels, p.plane, p.original, p.flat) for p in tsne_record.read_record(home / "tsne")[0]]


def _read_features(home):
    return tsne.read_features(tsne._features_folder(str(home / "features")), "final")


class Kind(NamedTuple):
    """file, other: of the home, as patterns. read: what is made of it. parts: what of the home is copied for it."""

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
        yield f"{name}, for the tables", _in_run(name, _result)
    for name in ("adapter_config.json", "adapter_model.safetensors", "checksums.json"):
        yield f"adapter/{name}", _in_run(f"adapter/{name}", _opened)
    for name in (
        "trained.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        *checkpoints.BESIDE,
        "manifest.json",
    ):
        yield f"checkpoint/{name}", _in_run(f"checkpoints/checkpoint-4/{name}", _continued)
    yield "start.safetensors", _in_run("checkpoints/start.safetensors", _start)
    for folder, names in {
        "bitfit": ("adapter.safetensors", "ba_lora.json", "checksums.json"),
        "full": ("model.safetensors", "config.json", "checksums.json"),
        "classifier": ("task.json", "adapter_model.safetensors", "checksums.json"),
    }.items():
        for name in names:
            yield f"{folder}/{name}", Kind(f"own/{folder}/{name}", f"own2/{folder}/{name}", partial(_own, folder))
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "checksums.json",
    ):
        yield f"tiny/{name}", Kind(f"tiny/{name}", "own2/full/checksums.json", _embedded)
    for name in ("data-00000-of-00001.arrow", "state.json", "dataset_info.json", "report.json", "checksums.json"):
        yield f"samples/{name}", Kind(f"cache/samples/*/{name}", "", _samples)
    yield "head cache", Kind("cache/heads/*/factor.safetensors", "", _factor)
    yield "decomposition cache", Kind("decompositions/*.safetensors", "", _triplets)
    for name in ("rows-00000.safetensors", "cache.json"):
        yield (
            f"teacher cache/{name}",
            Kind(f"teacher/{name}", f"teacher2/{name}", lambda home: _teacher(home / "teacher")),
        )
    for name in ("generations.jsonl", "generation.json"):
        yield f"unfinished {name}", Kind(f"lines/{name}", f"lines2/{name}", _lines)
        yield f"unscored {name}", Kind(f"lines/ended/{name}", f"lines2/ended/{name}", _ended)
    yield "judgments.jsonl", Kind("lines/judgments.jsonl", "lines2/judgments.jsonl", _judgments)
    predicted = lambda home: classify.read_predictions(home / "lines" / classify.PREDICTIONS, TASKS["sst2"])  # noqa: E731
    for name in (classify.PREDICTIONS, "score.json"):
        yield f"predictions/{name}", Kind(f"lines/{name}", f"lines2/{name}", predicted)
    for name in ("features_step_final.npy", "labels_step_final.npy", "features.json", "checksums.json"):
        yield f"features/{name}", Kind(f"features/{name}", f"features2/{name}", _read_features)
    for name in ("scores.json", "coordinates.csv"):
        yield f"t-SNE {name}", Kind(f"tsne/{name}", f"tsne2/{name}", _drawn)
    yield "a committed result", Kind("results/small/lora-s42.json", "results/small/ba-lora-s42.json", _table)
    yield "tuning.json", Kind("results/small/tuning.json", "results/other/tuning.json", _table)


KINDS = dict(_kinds())
GROWING = (_lines, _ended, _judgments)  # what lacks a line is asked again
FLIPS = (0.0, 0.2, 0.5, 0.8, 1.0)  # where in the file


def _flip(content, share):
    place = round(share * (len(content) - 1))
    return content[:place] + bytes([content[place] ^ 1 << (place % 7)]) + content[place + 1 :]


DAMAGES = {
    "truncated": lambda content, other: [content[: len(content) // 2], content[:-2]],
    "a bit flipped": lambda content, other: [_flip(content, share) for share in FLIPS],
    "emptied": lambda content, other: [b""],
    "swapped": lambda content, other: [other],
}


def _same(one, other):
    if isinstance(one, torch.Tensor | np.ndarray):
        return type(one) is type(other) and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", KINDS)
def test_no_damage_goes_unnoticed(home, tmp_path, monkeypatch, caplog, name, damage):
    kind = KINDS[name]
    shutil.copytree(home / kind.part, tmp_path / kind.part)
    shutil.copy(home / "small.yaml", tmp_path)
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "cache"))
    files = sorted(tmp_path.glob(kind.file))
    right = kind.read(tmp_path)
    assert not caplog.records, "whole files give no warning"
    contents = {file: file.read_bytes() for file in files}
    others = [home / kind.other] if kind.other else files[1:] + files[:1]
    noticed = 0
    for number, file in enumerate(files):
        other = others[number % len(others)].read_bytes()
        for content in DAMAGES[damage](contents[file], other):
            file.unlink()  # tensors and tables may be mapped to the whole one
            file.write_bytes(content)
            caplog.clear()
            try:
                value = kind.read(tmp_path)
            except UserError as error:
                said = str(error)
                assert "\n" not in said
            else:
                said = "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
                missing = kind.read in GROWING and value.items() <= right.items()
                assert said or missing or _same(value, right), f"{file.name}, {damage}: another value without a word"
                if said and "checkpoint" not in name and "start" not in name:
                    assert _same(value, right), "what is made again is what was there"
            if said:
                assert any(part in said for part in (file.name, file.parent.name)), said
                noticed += 1
            for each in files:
                each.parent.mkdir(parents=True, exist_ok=True)
                each.unlink(missing_ok=True)
                each.write_bytes(contents[each])
    assert (
        noticed
        or kind.read in GROWING
        or (damage == "swapped" and len({*contents.values(), *(p.read_bytes() for p in others)}) == 1)
    )


# Mix-ups and damage of whole folders


@pytest.fixture
def copied(home, tmp_path, monkeypatch):
    """The home again, to be damaged."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "home/cache"))
    return tmp_path / "home"


def _replace(folder, by):
    shutil.rmtree(folder)
    shutil.copytree(by, folder)


def test_a_manifest_that_lists_nothing_or_too_little_is_not_a_whole_checkpoint(copied):
    checkpoint = copied / RUN / "checkpoints/checkpoint-4"
    files = read_json(checkpoint / "manifest.json")["files"]
    for manifest, wrong in (
        ({}, "manifest.json cannot be read"),
        ({"files": {}}, "manifest.json does not list trained.safetensors"),
        ({"files": []}, "manifest.json does not list trained.safetensors"),
        *(
            (
                {"files": {name: entry for name, entry in files.items() if name != left_out}},
                f"manifest.json does not list {left_out}",
            )
            for left_out in files
        ),
    ):
        write_json(checkpoint / "manifest.json", manifest)
        assert checkpoints.flaw(checkpoint) == wrong
        assert _continued(copied) == "checkpoint-2"
    write_json(
        checkpoint / "manifest.json",
        {"files": {name: entry for name, entry in files.items() if name != "optimizer.pt"}},
    )
    (checkpoint / "optimizer.pt").unlink()
    assert checkpoints.flaw(checkpoint) == "manifest.json does not list optimizer.pt"


def test_a_checkpoint_of_another_run_is_left_aside_and_named(copied, caplog):
    kept = copied / RUN / "checkpoints"
    _replace(kept / "checkpoint-4", copied / OTHER / "checkpoints/checkpoint-4")
    shutil.copy(
        copied / OTHER / "checkpoints" / checkpoints.START, kept
    )  # with its start, so that the two fit each other
    assert _continued(copied) is None
    said = [record.getMessage() for record in caplog.records]
    assert "is of another run: method is ba-lora there and lora here" in said[0]
    assert "checkpoint-2 is not whole (it does not belong to this start.safetensors)" in said[1]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("seed", 7, "seed is 7 there and 42 here"), ("learning_rate", 0.5, "learning_rate is 0.5 there and 0.001 here")],
)
def test_a_checkpoint_of_a_run_with_the_same_start_is_told_by_its_options(copied, caplog, option, value, said):
    checkpoint = copied / RUN / "checkpoints/checkpoint-4"
    record = read_json(checkpoint / "run.json")
    write_sealed(checkpoint / "run.json", record | {"config": record["config"] | {option: value}})
    manifest = read_json(checkpoint / "manifest.json")
    changed = {"bytes": (checkpoint / "run.json").stat().st_size, "sha256": checksums.hash_of(checkpoint / "run.json")}
    write_json(checkpoint / "manifest.json", manifest | {"files": manifest["files"] | {"run.json": changed}})
    assert _continued(copied) == "checkpoint-2" and said in caplog.text


def test_a_checkpoint_under_the_name_of_a_later_step_is_left_aside(copied, caplog):
    kept = copied / RUN / "checkpoints"
    _replace(kept / "checkpoint-4", kept / "checkpoint-2")
    assert (
        _continued(copied) == "checkpoint-2"
        and "checkpoint-4 is not whole (it was written after step 2)" in caplog.text
    )


def test_a_whole_folder_of_another_run_is_refused(copied):
    _replace(copied / RUN / "adapter", copied / OTHER / "adapter")
    for read in (_opened, lambda home: load(home / RUN / "adapter"), lambda home: write_card(home / RUN)):
        with pytest.raises(DamagedFile, match="adapter/checksums.json is not that of the run in"):
            read(copied)
    shutil.copy(copied / OTHER / "run.json", copied / RUN)  # the run that it belongs to now
    assert _opened(copied).shape == (1, 8, 768)


def test_an_evaluation_of_other_weights_is_refused(copied):
    _replace(copied / RUN / "eval/test", copied / OTHER / "eval/test")
    with pytest.raises(
        DamagedFile, match="score.json is of other weights than those in .*lora-s42; evaluate this run again"
    ):
        _result(copied)


def test_a_finished_run_that_is_damaged_is_not_called_finished(copied):
    arguments = replace(read_experiment(copied / "small.yaml", copied / "runs").runs[0].arguments, resume=True)
    assert run.train(arguments) == copied / RUN
    weights = copied / RUN / "adapter/adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(_flip(content, 0.9))
    with pytest.raises(
        DamagedFile, match=r"adapter_model.safetensors was altered after it was written \(see checksums.json\); put"
    ):
        run.train(arguments)
    shutil.rmtree(weights.parent)
    with pytest.raises(DamagedFile, match="adapter/checksums.json is missing"):
        run.train(arguments)


def test_metrics_that_were_altered_are_put_back_from_the_checkpoint(copied, caplog):
    metrics, copy = copied / RUN / "metrics.jsonl", copied / RUN / "checkpoints/checkpoint-2/metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    assert copy.read_text() == "".join(lines[:2])
    for altered in (
        "",
        lines[0],
        lines[0].replace("0.", "1.") + lines[1],
        lines[1] + lines[0],
        "\0" * 50,
        "".join(lines[:2])[:-9],
    ):
        metrics.write_text(altered)
        caplog.clear()
        assert [row["step"] for row in forget_after(metrics, 2, copy)] == [1, 2]
        assert (
            metrics.read_text() == "".join(lines[:2])
            and "metrics.jsonl was altered; it is put back from" in caplog.text
        )
    for whole in ("".join(lines), "".join(lines[:3]) + '{"step": 4, "lo'):
        metrics.write_text(whole)
        caplog.clear()
        assert len(forget_after(metrics, 2, copy)) == 2
        assert metrics.read_text() == "".join(lines[:2]) and not caplog.records


def test_a_damaged_package_is_fetched_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip finds nothing
    folder = tmp_path / "packages/no-such-package-1.0"
    (folder / "data").mkdir(parents=True)
    (folder / "data/questions.jsonl").write_text("{}\n")
    checksums.write(folder)
    assert packages.fetch("no-such-package", "1.0") == folder
    (folder / "data/questions.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="no-such-package==1.0 cannot be installed"):
        packages.fetch("no-such-package", "1.0")
    assert (
        "questions.jsonl was altered after it was written (see checksums.json): the package is fetched again"
        in capsys.readouterr().err
    )


# The whole command: a run that was cut short after step 2 of 4 goes on to the same weights, or is refused by name


def _flipped(file, share=0.99):
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(_flip(content, share))


RESUMED = {  # what is damaged: (how, what is said, whether the run ends)
    "nothing": (lambda home: None, "", True),
    "start": (
        lambda home: _flipped(home / OTHER / "checkpoints/start.safetensors"),
        "start.safetensors was altered after it was written; put it back from a copy, or start again with --overwrite",
        False,
    ),
    "run.json": (lambda home: _flipped(home / OTHER / "run.json"), "run.json", False),
    "the only checkpoint": (
        lambda home: _flipped(home / OTHER / "checkpoints/checkpoint-2/trained.safetensors"),
        "checkpoint-2 is not whole (trained.safetensors was altered) and is skipped",
        True,
    ),
    "metrics": (
        lambda home: _flipped(home / OTHER / "metrics.jsonl", 0.1),
        "metrics.jsonl was altered; it is put back",
        True,
    ),
    "samples": (
        lambda home: [_flipped(file) for file in home.glob("cache/samples/*/*.arrow")],
        "data-00000-of-00001.arrow was altered after it was written",
        True,
    ),
    "head": (lambda home: [_flipped(file) for file in home.glob("cache/heads/*/*")], "it is made again", True),
}


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "said", "ends"), RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_on_damaged_files_ends_with_the_same_weights_or_names_the_file(
    home, copied, caplog, damage, said, ends
):
    folder = copied / OTHER
    arguments = read_experiment(copied / "small.yaml", copied / "runs").runs[1].arguments
    shutil.copy(folder / "checkpoints/checkpoint-2/run.json", folder)
    shutil.rmtree(folder / "checkpoints/checkpoint-4")
    shutil.rmtree(folder / "adapter")
    damage(copied)
    if ends:
        run.train(replace(arguments, resume=True))
        same = [(each / OTHER / "adapter/adapter_model.safetensors").read_bytes() for each in (home, copied)]
        assert same[0] == same[1] and read_json(folder / "run.json")["status"] == "finished"
        lines = [(each / OTHER / "metrics.jsonl").read_text().splitlines() for each in (home, copied)]
        losses = [[json.loads(line)["loss"] for line in each] for each in lines]
        assert losses[0] == losses[1] and len(losses[0]) == 4
        assert said in caplog.text
    else:
        with pytest.raises(DamagedFile) as error:
            run.train(replace(arguments, resume=True))
        assert said in str(error.value)


@pytest.mark.slow
def test_a_run_on_a_damaged_teacher_cache_builds_it_again_and_ends_with_the_same_weights(copied, caplog):
    arguments = read_experiment(copied / "small.yaml", copied / "runs").runs[1].arguments
    arguments = replace(arguments, teacher_cache=str(copied / "kept"), save_steps=0)
    made = []
    for number, damage in enumerate(
        (
            lambda: None,
            lambda: _flipped(copied / "kept/rows-00000.safetensors"),
            lambda: (copied / "kept/cache.json").write_text("{"),
        )
    ):
        damage()
        folder = run.train(replace(arguments, output_dir=str(copied / f"run{number}")))
        made.append((folder / "adapter/adapter_model.safetensors").read_bytes())
    assert made[0] == made[1] == made[2]
    assert "rows-00000.safetensors was altered after it was written; it is built again" in caplog.text
    assert "cache.json is damaged; it is written again" in caplog.text


# What was made before there were checksums, or is changed on purpose


def _bare_tensors(file):
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    file.unlink()
    save_file(tensors, file)


NEWER = {  # keys that earlier versions did not write
    "run.json": ("files",),
    "score.json": ("files", "weights"),
    "scores.json": ("files",),
    "measures.json": ("weights",),
    "generation.json": ("lines",),
    "report.json": ("key",),
}


def test_files_of_earlier_versions_open_as_before(copied, caplog):
    reads = {kind.read for kind in KINDS.values()}
    right = [(read, read(copied)) for read in reads]
    for file in copied.rglob("checksums.json"):
        file.unlink()
    for file in (file for file in copied.rglob("*.json") if file.name not in ("trainer_state.json", "tokenizer.json")):
        content = read_json(file)
        for key in NEWER.get(file.name, ("experiment",)):
            content.pop(key, None)
        file.unlink()
        file.write_text(json.dumps(content, indent=2))
    for file in copied.rglob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text(
            "".join(json.dumps({key: value for key, value in row.items() if key != "check"}) + "\n" for row in rows)
        )
    for pattern in ("cache/heads/*/*", "teacher/rows-*", f"{RUN}/checkpoints/start.*"):
        for file in copied.glob(pattern):
            _bare_tensors(file)
    for checkpoint in copied.rglob("checkpoint-*"):
        files = read_json(checkpoint / "manifest.json")["files"]
        for name in checkpoints.BESIDE:
            (checkpoint / name).unlink()
            del files[name]
        entry = {"bytes": (checkpoint / "trainer_state.json").stat().st_size}
        files["trainer_state.json"] |= entry
        write_json(checkpoint / "manifest.json", {"files": files})
    caplog.clear()
    for read, value in right:
        now = read(copied)
        if read is _result:
            now, value = ({key: part for key, part in each.items() if key != "provenance"} for each in (now, value))
        assert _same(now, value), read
    assert not caplog.records


def test_a_json_file_that_was_changed_on_purpose_is_taken_without_its_checksum(copied):
    file = copied / RUN / "run.json"
    text = file.read_text()
    file.write_text(text.replace('"seed": 42', '"seed": 43'))
    with pytest.raises(
        DamagedFile, match='run.json was altered after it was written; .* remove its line "checksum" if the change'
    ):
        read_json(file)
    lines = text.replace('"seed": 42', '"seed": 43').splitlines()
    lines.remove(next(line for line in lines if '"checksum"' in line))
    lines[-2] = lines[-2].rstrip(",")
    file.write_text("\n".join(lines))
    assert read_json(file)["config"]["seed"] == 43
    file.write_text(json.dumps(json.loads(text) | {"status": "running"}))  # by another program
    assert read_json(file)["status"] == "running"


def test_an_adapter_that_is_changed_on_purpose_opens_without_its_checksums(copied, caplog):
    weights = copied / RUN / "adapter/adapter_model.safetensors"
    tensors = {name: 2 * tensor for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(DamagedFile, match="if the change is your own, remove checksums.json from that folder"):
        _opened(copied)
    (weights.parent / "checksums.json").unlink()
    _opened(copied)
    assert "checksums.json is missing, so whether" in caplog.text


# The user's own files


OWN = {
    "a config, emptied": ("c.yaml", b"", lambda file: parse(["--config", str(file), "--output_dir", "x"])),
    "a config, torn": ("c.yaml", b"rank: [1", lambda file: parse(["--config", str(file), "--output_dir", "x"])),
    "a config, a bit of a key": (
        "c.yaml",
        b"rbnk: 1\n",
        lambda file: parse(["--config", str(file), "--output_dir", "x"]),
    ),
    "a config, no text": ("c.yaml", b"rank: \xff\n", lambda file: parse(["--config", str(file), "--output_dir", "x"])),
    "an experiment, emptied": ("e.yaml", b"", read_file),
    "an experiment, torn": ("e.yaml", b"name: x\nmethods: {a", read_file),
    "data, emptied": ("d.jsonl", b"", lambda file: read_table(str(file)).rows),
    "JSON lines, torn": (
        "d.jsonl",
        b'{"question": "a", "answer": "b"}\n{"question": "a", "an',
        lambda file: read_table(str(file)).rows,
    ),
    "JSON, torn": ("d.json", b'[{"question": "a", "answer": "b"}, {"ques', lambda file: read_table(str(file)).rows),
    "parquet, torn": ("d.parquet", b"PAR1 and half of a table", lambda file: read_table(str(file)).rows),
    "CSV, emptied": ("d.csv", b"", lambda file: read_table(str(file)).rows),
    "generations, torn": ("g.jsonl", b'{"id": 1, "completion": "x", "refer', lambda file: read_lines(file, ("id",))),
    "generations, emptied": ("g.jsonl", b"", lambda file: read_lines(file, ("id",))),
}


@pytest.mark.parametrize(("name", "content", "read"), OWN.values(), ids=OWN)
def test_a_broken_file_of_the_users_is_refused_by_name(tmp_path, name, content, read):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)
