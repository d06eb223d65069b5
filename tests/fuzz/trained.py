"""Models, adapters, runs and caches, and what reads their files."""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest import mock

from ba_lora.card import write_card
from ba_lora.errors import UserError
from ba_lora.experiments.matrix import RUN_KINDS
from ba_lora.files import read_json
from ba_lora.methods.save import check_saved, find_run, load, read_task
from ba_lora.models import load_model
from ba_lora.planning.shapes import build
from ba_lora.training import resume, teacher_cache
from ba_lora.training.callbacks import forget_after
from ba_lora.training.command_line import parse
from ba_lora.training.deepspeed_config import check_config, zero_stage
from ba_lora.training.inputs import inputs_changed
from eval.classifiers.classify import open_classifier
from tests.common import finished_run, small_llama
from tests.fuzz.mutations import written


@cache
def base():
    return small_llama()


def make_run(folder: Path) -> None:
    shutil.rmtree(folder / "run", ignore_errors=True)
    finished_run(folder / "run")
    row = {"step": 7, "loss": 1.5, "task": 1.0, "consistency": None, "diversity": 0.5, "spectrum": None}
    (folder / "run" / "metrics.jsonl").write_bytes(written([row], "jsonl"))
    score = {"benchmark": "gsm8k", "metric": "accuracy", "score": 0.5, "stderr": 0.1, "n": 3, "protocol": "ba-lora"}
    score |= {"protocol_version": "2", "data": "gsm8k", "ba_lora_version": "0"}
    (folder / "run/eval/gsm8k").mkdir(parents=True)
    (folder / "run/eval/gsm8k/score.json").write_bytes(written(score, "json"))


def run(file: Path) -> None:
    """run.json, as the evaluation, the card, --resume and the matrix read it."""
    folder = file.parent
    arguments = parse(["--output_dir", str(folder), "--resume"])
    for read in (
        lambda: find_run(folder),
        lambda: read_task(folder / "adapter"),
        lambda: write_card(folder),
        lambda: resume.refuse_changes(
            arguments, {"tokenizer": "t", "data": {"hash": "h", "kept": 1}, "order_hash": "o"}
        ),
        lambda: inputs_changed(read_json(file, kinds=RUN_KINDS), arguments),
        lambda: open_classifier(str(folder)),
    ):
        each(read)


def each(read: Callable[[], object]) -> None:
    """Let one of several readers refuse a file with its own UserError, so that the others read it too."""
    try:
        read()
    except UserError as error:
        assert "\n" not in str(error), f"two lines: {error}"


def metrics(file: Path) -> None:
    from ba_lora.experiments.figures.run import draw_terms

    each(lambda: write_card(file.parent))
    with mock.patch("ba_lora.experiments.figures.run.write", lambda figure, output: output):
        each(lambda: draw_terms(str(file)))
    forget_after(file, 3, file.with_name("none"))


def adapter(file: Path) -> None:
    folder = file.parent
    for read in (
        lambda: find_run(folder),
        lambda: check_saved(folder),
        lambda: load(folder, base()),
    ):
        each(read)


@cache
def saved_adapter(method: str) -> dict[str, bytes]:
    """{name: content} of an adapter of the small model."""
    from ba_lora.methods.attach import attach
    from ba_lora.methods.save import export

    with tempfile.TemporaryDirectory() as place:
        export(attach(small_llama(), method, rank=2, alpha=2), Path(place) / "adapter")
        return {file.name: file.read_bytes() for file in (Path(place) / "adapter").iterdir()}


def make_adapter(method: str, folder: Path) -> None:
    for name, content in saved_adapter(method).items():
        if name != "checksums.json":
            (folder / name).write_bytes(content)


@cache
def saved_model() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place:
        small_llama().save_pretrained(place)
        return {file.name: file.read_bytes() for file in Path(place).iterdir()}


def make_model(folder: Path) -> None:
    for name, content in saved_model().items():
        (folder / name).write_bytes(content)


def model(file: Path) -> None:
    each(lambda: load_model(str(file.parent)))
    if file.name == "config.json":
        each(lambda: build(str(file.parent), "float32"))


CACHE = {name: "x" for name in teacher_cache.FACTS} | {"format": 1, "rows": 3, "width": 2, "temperature": 1.0}


def claim_cache(file: Path) -> None:
    teacher_cache._claim(file.parent, CACHE, mock.Mock(members=[]))


def deepspeed(file: Path) -> None:
    check_config(str(file))
    zero_stage(str(file))


TASK = {"labels": ["negative", "positive"], "head": ["score"], "name": "sst2"}
FIGURE = {
    "classes": ["a", "b"],
    "pooling": "mean",
    "examples": 2,
    "perplexity": 2,
    "seed": 0,
    "panels": [{"run": "r", "step": 0, "original": {"silhouette": 0.1}, "plane": {"silhouette": 0.1}}],
}
POINTS = b"run,step,example,label,x,y\nr,0,0,a,0.5,0.5\nr,0,1,b,1.5,0.5\n"


def make_figure(folder: Path) -> None:
    (folder / "scores.json").write_bytes(written(FIGURE, "json"))
    (folder / "coordinates.csv").write_bytes(POINTS)


def of(method: str, name: str) -> dict:
    return json.loads(saved_adapter(method)[name])


def run_record() -> dict:
    with tempfile.TemporaryDirectory() as place:
        return json.loads((finished_run(Path(place) / "run") / "run.json").read_bytes())


def score() -> dict:
    score = {"benchmark": "gsm8k", "metric": "accuracy", "score": 0.5, "stderr": 0.1, "n": 3, "protocol": "ba-lora"}
    return score | {"protocol_version": "2", "data": "gsm8k", "ba_lora_version": "0", "files": {}}
