"""Evaluations of the embedded model by transformers and by vLLM, for the tests that compare the two."""

import json
import os
import subprocess
from pathlib import Path

import torch

from ba_lora.methods.attach import attach
from ba_lora.methods.save import export
from ba_lora.models import load_model
from eval import gsm8k

ROOT = Path(__file__).parents[2]
PROBLEMS = 100
OPTIONS = ["--data", "tinymath:test", "--limit", str(PROBLEMS), "--max_new_tokens", "96"]


def export_adapters(folder):
    """Export a PiSSA run to folder/pissa (rank 2r), and to folder/head an adapter with a trained head, which vLLM cannot serve."""
    import peft

    pissa = attach(load_model("tiny"), "pissa", rank=5, alpha=5, seed=0)
    _move(pissa)
    export(pissa, folder / "pissa")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    with_head = peft.get_peft_model(load_model("tiny"), config)
    _move(with_head)
    export(with_head, folder / "head")


def _move(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)


def read(folder):
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


def score(folder):
    return json.loads((folder / "score.json").read_text())


def by_transformers(folder, adapters, names):
    """Evaluate the base model and each named adapter with transformers; returns name → its folder of results."""
    folders = {}
    for name in ("base", *names):
        folders[name] = folder / f"transformers-{name}"
        adapter = [] if name == "base" else ["--adapter", str(adapters / name)]
        gsm8k.main(["--model", "tiny", *adapter, *OPTIONS, "--output_dir", str(folders[name])])
    completions = [[line["completion"] for line in read(folder)] for folder in folders.values()]
    assert all(found != completions[0] for found in completions[1:])
    return folders


def call(python, *words, **variables):
    """Run a command with vLLM's interpreter; takes about a minute on one core."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | variables
    done = subprocess.run([python, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def evaluate(python, folder, *words):
    call(python, "-m", "eval.gsm8k", "--model", "tiny", *OPTIONS, "--output_dir", str(folder), *words)
    return read(folder)


def assert_same(found, folder, expected):
    """Compare every completion, its end and its length, and the score."""
    assert found == read(expected)
    scores = [
        {key: score(place)[key] for key in ("score", "n", "n_unparsable", "n_truncated")}
        for place in (folder, expected)
    ]
    assert scores[0] == scores[1]
