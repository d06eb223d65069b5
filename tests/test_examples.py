"""The programs in examples/ run without the hub, and what they write opens elsewhere; the notebook's output is that of a run."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import ba_lora
from ba_lora.models import load_model, load_tokenizer
from ba_lora.tiny import MODEL_DIR
from tests.common import ROOT

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
PATHS = re.compile(r"(?:^|[\s\"'(=])(?:/(?:home|root|tmp|Users|usr|opt|var|work)/|[A-Z]:\\\\)", re.MULTILINE)


def run(name: str, folder: Path, *words: str) -> str:
    """What an example prints in `folder`; it must not fail."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(EXAMPLES / name), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout


def write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_an_example_is_short(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.slow
def test_your_model_is_an_adapter_that_stock_peft_opens(tmp_path):
    rows = [{"prompt": f"{a} + {b} =", "response": f" {a + b}"} for a in range(1, 10) for b in range(1, 10)]
    write(tmp_path / "my.jsonl", rows)
    run("your_model.py", tmp_path, str(MODEL_DIR), "my.jsonl", "adapter", "--rank", "16", "--learning_rate", "4e-3")
    base, tokenizer = load_model("tiny"), load_tokenizer("tiny")
    before = loss(base, tokenizer, rows[::8])
    after = loss(PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), tokenizer, rows[::8])
    assert after < before / 2


def loss(model, tokenizer, rows: list[dict]) -> float:
    """Mean nats per response of a model, one row after another."""
    total = 0.0
    for row in rows:
        asked, said = (tokenizer(row[part]).input_ids for part in ("prompt", "response"))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([asked + said])).logits[0].double()
        total -= logits.log_softmax(-1)[len(asked) - 1 : -1].gather(1, torch.tensor(said)[:, None]).sum().item()
    return total / len(rows)


@pytest.mark.slow
def test_the_classifier_learns_and_is_saved_with_its_head(tmp_path):
    words, draw = {"negative": ("bad", "awful", "poor"), "positive": ("good", "great", "fine")}, random.Random(0)
    labels = [draw.choice([*words]) for _ in range(320)]
    write(
        tmp_path / "my.jsonl",
        [
            {"text": f"It was {draw.choice(words[label])}, {draw.choice(words[label])}.", "label": label}
            for label in labels
        ],
    )
    said = run("classifier.py", tmp_path, str(MODEL_DIR), "my.jsonl", "adapter", "--learning_rate", "2e-3")
    assert float(re.search(r"accuracy on 32 held-out texts: (\S+)", said)[1]) > 0.9
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert [name for name in names if name.endswith("score.weight")]
    loaded = ba_lora.load(tmp_path / "adapter", str(MODEL_DIR))
    assert loaded.base_model.model.score.modules_to_save["default"].weight.shape[0] == 2


def cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def printed(cells: list) -> str:
    """The text that the cells print."""
    parts = (part.get("text", "") for cell in cells for part in cell["outputs"])
    return "".join("".join(text) for text in parts)


def right(cells: list) -> dict[str, int]:
    """Right answers of the base and of the tuned model, as the notebook prints them."""
    found = re.findall(r"^(base|tuned): (\d+) of \d+ test problems are right$", printed(cells), re.MULTILINE)
    return {name: int(number) for name, number in found}


def test_the_notebook_was_run_from_top_to_bottom_and_names_no_path_of_a_machine():
    assert [cell["execution_count"] for cell in cells()] == [*range(1, len(cells()) + 1)]
    outputs = [part for cell in cells() for part in cell["outputs"]]
    assert {part["output_type"] for part in outputs} <= {"stream", "display_data"}
    assert sum("image/png" in part.get("data", {}) for part in outputs) == 1
    assert {part["name"] for part in outputs if part["output_type"] == "stream"} == {"stdout"}
    text = printed(cells()) + NOTEBOOK.read_text(encoding="utf-8").partition("image/png")[0]
    assert PATHS.search(text) is None and PATHS.search("saved in /home/me/x")
    assert right(cells())["tuned"] > right(cells())["base"] > 0 and NOTEBOOK.stat().st_size < 300_000


@pytest.mark.slow
def test_the_notebook_runs_and_learns(tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient", reason='nbclient is not installed; pip install ".[dev]"')
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason='ipykernel is not installed; pip install ".[dev]"')
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    again = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert right(again)["tuned"] > right(again)["base"] > 0
    assert (tmp_path / "quickstart-adapter" / "adapter_model.safetensors").is_file()
