"""Every shipped recipe matches the published one in parameters, steps, batch, precision and weights, planned without weights."""

import re
from pathlib import Path

import pytest
import yaml

from ba_lora.inference import backends
from ba_lora.planning.plan import plan, render
from ba_lora.training.command_line import parse
from eval.all import BENCHMARKS

FOLDER = Path(__file__).parent.parent / "configs" / "nlg"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
RECIPES = [
    file for file in CONFIGS if file.stem.removesuffix("-r64").endswith(("-iclr", "-v5")) and "tiny" not in file.stem
]
TRAINED = {  # r · Σ(in + out) over seven modules
    ("llama-2-7b", 128): 319_815_680,
    ("mistral-7b", 128): 335_544_320,
    ("gemma-7b", 128): 400_031_744,
    ("llama-3-8b", 128): 335_544_320,
    ("mistral-7b", 64): 167_772_160,
    ("gemma-7b", 64): 200_015_872,
}
DATA = {
    "metamath": ("fxmeng/pissa-dataset:metamath", ["gsm8k", "math"]),
    "code": ("fxmeng/pissa-dataset:python", ["humaneval", "mbpp"]),
    "conversation": ("fxmeng/pissa-dataset:conversation", ["mt_bench"]),
}
VERSIONS = {
    "iclr": {"dtype": "bfloat16", "effective_batch_size": 32, "steps": 3125, "lambdas": (0.025, 0.005, 0.005)},
    "v5": {"dtype": "float32", "effective_batch_size": 128, "steps": 782, "lambdas": (1e-4, 3e-4, 1e-4)},
}


SIZES = {  # the figure over models: trained parameters at rank 128; for Mixtral, attention only
    "llama-2-13b": 500_695_040,
    "llama-3-70b": 1_656_750_080,
    "qwen1.5-7b": 319_815_680,
    "yi-1.5-34b": 983_040_000,
    "mixtral-8x7b": 109_051_904,
}
PLANNED_QUICKLY = ("qwen1.5-7b",)


def planned(file, *words):
    return plan(parse(["--config", str(file), *words, "--dry_run"]), memory=False)


def test_the_recipes_are_complete():
    names = {
        f"{model}-{data}-{version}" for model, rank in TRAINED if rank == 128 for data in DATA for version in VERSIONS
    }
    narrow = {f"{name}-r64" for name in names if name.startswith(("mistral", "gemma"))}
    assert {file.stem for file in RECIPES} == names | narrow and len(RECIPES) == 36


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_published_recipe_plans_to_the_published_run(file):
    stem, rank = (file.stem.removesuffix("-r64"), 64) if file.stem.endswith("-r64") else (file.stem, 128)
    model, data, version = stem.rsplit("-", 2)
    made, expected = planned(file), VERSIONS[version]
    assert made["trainable_parameters"] == TRAINED[model, rank]
    assert made["rank"] == made["alpha"] == rank
    for name in ("dtype", "effective_batch_size", "steps"):
        assert made[name] == expected[name]
    assert tuple(made["objective"][f"lambda{i}"] for i in (1, 2, 3)) == expected["lambdas"]
    assert (made["data"], made["benchmarks"]) == DATA[data]
    assert (made["samples"], made["micro_batch_size"], made["template"]) == (100_000, 4, "alpaca")
    arguments = parse(["--config", str(file), "--dry_run"])
    assert (arguments.learning_rate, arguments.lr_scheduler, arguments.warmup_ratio) == (2e-5, "cosine", 0.03)
    assert (arguments.weight_decay, arguments.epochs, arguments.max_length, arguments.seed) == (0.0, 1, 512, 42)
    assert file.read_text().startswith("# ")


def test_the_recipes_of_other_sizes_are_complete():
    names = {f"{model}-{data}" for model in (*SIZES, "deepseek-moe-16b") for data in ("metamath", "code")}
    assert {file.stem for file in (FOLDER / "sizes").glob("*.yaml")} == names
    for name in names:
        arguments = parse(["--config", str(FOLDER / "sizes" / f"{name}.yaml"), "--dry_run"])
        data, benchmarks = DATA[name.rpartition("-")[2]]
        assert (arguments.data, arguments.benchmarks) == (data, benchmarks[:1])  # the figure has GSM8K and HumanEval
        assert (arguments.rank, arguments.effective_batch_size, arguments.dtype) == (128, 32, "bfloat16")
        assert (arguments.quantize == "nf4") == name.startswith(("llama-3-70b", "yi", "deepseek"))


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=() if model in PLANNED_QUICKLY else pytest.mark.slow) for model in SIZES]
)
def test_a_recipe_of_another_size_trains_what_its_shapes_say(model):
    made = planned(FOLDER / "sizes" / f"{model}-metamath.yaml")
    assert (made["trainable_parameters"], made["steps"]) == (SIZES[model], 3125)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_plan_of_a_published_recipe_shows_launcher_deepspeed_and_evaluation(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the names in a config are found from any folder
    monkeypatch.delenv("BA_LORA_VLLM", raising=False)
    monkeypatch.setattr(backends, "vllm_obstacle", lambda: "vLLM is not installed in this Python")
    monkeypatch.setenv("NPROC", "1")
    left_out = "none: .*zero2.json divides the work of several processes, and this run has one"
    alone = (r"transformers, 1 process \(vLLM is not installed in this Python\)", left_out)
    assert shown(planned(file), "none: one process", *alone)
    monkeypatch.setenv("NPROC", "8")
    made = planned(file)
    assert shown(made, "torchrun", r"transformers, 8 processes \(vLLM .*\)", ".*configs/deepspeed/zero2.json")
    assert made["zero_stage"] == 2 and made["effective_batch_size"] == 32 * made["accumulation"]
    off = planned(file, "--deepspeed", "none", "--eval_backend", "openai")
    assert shown(off, "torchrun", "openai", "none") and off["zero_stage"] == 0
    monkeypatch.setattr(backends, "vllm_obstacle", lambda: None)
    monkeypatch.setattr(backends, "_installed", lambda choice: choice)
    eight = planned(file, "--devices", "8xH100-80")
    assert shown(eight, "torchrun", "vllm, 8 processes", ".*configs/deepspeed/zero2.json")


def shown(made, launcher, evaluation, deepspeed):
    """True if the printed plan has these lines (patterns)."""
    text = render(made)
    lines = {"launcher": launcher, "evaluation": evaluation, "DeepSpeed": deepspeed}
    return all(re.search(rf"^{name} +{pattern}$", text, flags=re.M) for name, pattern in lines.items())


def test_rank_64_of_llama_2_is_half_of_the_printed_number():
    made = planned(FOLDER / "llama-2-7b-metamath-iclr.yaml", "--rank", "64")
    assert made["trainable_parameters"] == 159_907_840


@pytest.mark.parametrize("file", [file for file in CONFIGS if file not in RECIPES], ids=lambda file: file.stem)
def test_every_other_config_plans_too(file):
    made = planned(file)
    assert made["steps"] in (20, 80, 100, 3125) and made["trainable_parameters"] > 0


def test_the_benchmarks_of_every_config_are_known():
    for file in CONFIGS:
        assert set(parse(["--config", str(file), "--dry_run"]).benchmarks or ()) <= set(BENCHMARKS)


def test_a_base_file_holds_options_only_and_is_not_run_alone():
    for file in (FOLDER / "base").glob("*.yaml"):
        assert "model" not in yaml.safe_load(file.read_text())
