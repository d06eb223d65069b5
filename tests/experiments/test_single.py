"""One config by one command: the data of its benchmarks, and what is left if one of them fails."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel

import eval.all
from ba_lora.errors import UserError
from ba_lora.experiments.benchmark_data import column_of, data_of
from ba_lora.experiments.closing import closing, next_commands
from ba_lora.experiments.single import train_and_evaluate
from ba_lora.inference import backends
from ba_lora.training.command_line import parse
from eval import gsm8k
from tests.common import finished_run
from tests.inference.vllm_results import ROOT, read, score
from tests.inference.vllm_servers import python_or_skip

TINY = str(Path(__file__).parents[2] / "configs/nlg/tiny.yaml")


def options(*words):
    return parse(["--config", TINY, "--output_dir", "unused", *words])


def test_one_file_is_for_one_benchmark_and_several_need_their_names():
    assert data_of(options(), ["gsm8k"]) == {"gsm8k": "tinymath:test"}
    assert data_of(options("--eval_data", "gsm8k=a", "math=b"), ["gsm8k", "math"]) == {"gsm8k": "a", "math": "b"}
    assert data_of(options("--eval_data", "none"), ["gsm8k", "math"]) == {}
    with pytest.raises(UserError, match="--eval_data takes NAME=FILE, got 'a'"):
        data_of(options("--eval_data", "a"), ["gsm8k", "math"])


@pytest.mark.parametrize(
    ("words", "column"),
    [
        ("", "tinymath"),
        ("--eval_data tinymath:shifted:7", "tinymath"),
        ("--eval_data none", "tinymath"),  # the default of the embedded model
        ("--eval_data none --model someone/base", "gsm8k"),
        ("--eval_data tinymath:test --model someone/base", "tinymath"),
        ("--eval_data math=b gsm8k=tinymath:test --benchmarks gsm8k math", "tinymath"),
        ("--eval_data math=b gsm8k=a.jsonl --benchmarks gsm8k math", "gsm8k"),
        ("--eval_data a.jsonl", "gsm8k"),
        ("--eval_data none --data openai/gsm8k --data_path nowhere/train.jsonl", "gsm8k"),
    ],
)
def test_generated_problems_are_not_called_gsm8k(words, column):
    arguments = options(*words.split())
    assert column_of("gsm8k", arguments) == column and column_of("math", arguments) == "math"


def test_what_cannot_be_read_is_said_before_the_training(tmp_path):
    words = ["--benchmarks", "gsm8k", "math", "--eval_data", "gsm8k=tinymath:test", f"math={tmp_path}/none.jsonl"]
    with pytest.raises(UserError, match=r"none\.jsonl"):
        train_and_evaluate(TINY, [*words, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_benchmark_that_fails_leaves_the_run_and_a_card_with_the_others(tmp_path, monkeypatch):
    def fails(words):
        raise UserError("bubblewrap is missing")

    monkeypatch.setattr("eval.humaneval.main", fails)
    monkeypatch.setattr(eval.all, "check_data", lambda *names: None)
    words = ["--limit", "32", "--eval_limit", "2", "--progress", "false", "--output_dir", str(tmp_path / "run")]
    words += [
        "--benchmarks",
        "humaneval",
        "gsm8k",
        "--eval_data",
        "gsm8k=tinymath:test",
        "--eval_backend",
        "transformers",
    ]
    with pytest.raises(UserError, match="^humaneval has no score: bubblewrap is missing$"):
        train_and_evaluate(TINY, words)
    assert json.loads((tmp_path / "run" / "eval" / "gsm8k" / "score.json").read_text())["n"] == 2
    assert "| gsm8k | tinymath |" in (tmp_path / "run" / "adapter" / "README.md").read_text()


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_evaluates_and_the_last_line_says_where_all_is(
    tmp_path, monkeypatch, capfd
):
    folder = tmp_path / "my run"
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("BA_LORA_VLLM", raising=False)
    monkeypatch.setattr(backends, "vllm_obstacle", lambda: "vLLM is not installed in this Python")
    words = ["--max_steps", "1", "--eval_limit", "6", "--progress", "false", "--output_dir", str(folder)]
    assert train_and_evaluate(TINY, words) == 0
    said = capfd.readouterr().out.splitlines()
    assert "The evaluation will use transformers: vLLM is not installed in this Python" in said
    shared = json.loads((folder / "eval" / "gsm8k" / "score.json").read_text())
    value, error = 100 * shared["score"], 100 * shared["stderr"]
    assert said[-1] == (
        f"my run: tinymath {value:.2f} ± {error:.2f} (n = 6, transformers, 2 processes); everything is in {folder}"
    )
    assert json.loads((folder / "run.json").read_text())["processes"] == 2

    alone = tmp_path / "alone"
    words = [str(folder), "--benchmarks", "gsm8k", "--data", "gsm8k=tinymath:test", "--limit", "6", "--processes", "1"]
    assert eval.all.main([*words, "--output_dir", str(alone)]) == 0
    for name in ("generations.jsonl", "scored.jsonl"):
        assert (alone / "gsm8k" / name).read_bytes() == (folder / "eval" / "gsm8k" / name).read_bytes()

    commands = dict(line.strip().split("  ", 1) for line in said[said.index("Next:") + 1 : -1])
    assert commands.keys() == {"chat", "merge", "in Python", "evaluate"}
    assert shlex.split(commands["chat"])[-2:] == ["--model", str(folder)]
    exec(shlex.split(commands["merge"])[2])
    assert (tmp_path / "my run-merged" / "model.safetensors").is_file()
    exec(commands["in Python"].strip(), names := {})
    assert isinstance(names["model"], PeftModel)
    assert shlex.split(commands["evaluate"])[2:] == [
        "eval.all",
        str(folder),
        "--benchmarks",
        "math",
        "--backend",
        "auto",
    ]


@pytest.mark.slow
def test_the_command_of_a_config_trains_on_two_processes_under_zero2_and_evaluates_with_vllm(tmp_path):
    """vLLM has an environment of its own here, which BA_LORA_VLLM names; the training has this one."""
    vllm_python, folder = python_or_skip(), tmp_path / "run"
    words = ["configs/nlg/tiny.yaml", "--deepspeed", "configs/deepspeed/zero2.json", "--eval_backend", "auto"]
    words += ["--limit", "320", "--eval_limit", "24", "--progress", "false", "--output_dir", str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NPROC": "2", "OMP_NUM_THREADS": "1"}
    environment["BA_LORA_VLLM"] = str(Path(vllm_python).parents[1])
    command = [sys.executable, "-m", "ba_lora.experiments", "one", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    record, made = json.loads((folder / "run.json").read_text()), score(folder / "eval" / "gsm8k")
    assert record["processes"] == 2 and record["deepspeed"]
    assert (made["backend"], made["processes"], made["n"]) == ("vllm", 1, 24)
    last = f"tinymath {100 * made['score']:.2f} ± {100 * made['stderr']:.2f} (n = 24, vllm, 1 process)"
    assert done.stdout.splitlines()[-1] == f"run: {last}; everything is in {folder}"

    words = ["--model", str(folder), "--data", "tinymath:test", "--limit", "24", "--output_dir", str(tmp_path / "ours")]
    assert gsm8k.main(words) == 0
    assert read(tmp_path / "ours") == read(folder / "eval" / "gsm8k")


@pytest.mark.parametrize(
    ("method", "saved", "expected"),
    [
        ("full", "model", {"chat", "in Python", "evaluate"}),
        ("houlsby", "adapter", {"chat", "in Python", "evaluate"}),
        ("dora", "adapter", {"chat", "merge", "in Python", "evaluate"}),
    ],
)
def test_the_next_commands_are_those_that_the_method_has(tmp_path, method, saved, expected):
    run = finished_run(tmp_path / "run", saved=saved, method=method)
    arguments = options("--method", method, "--init", "none", "--benchmarks", *eval.all.BENCHMARKS)
    commands = next_commands(run, arguments)
    assert commands.keys() == expected and "--benchmarks mt_bench" in commands["evaluate"]
    assert closing(run, arguments)[-1] == f"run: not evaluated; everything is in {run}"


def test_an_endpoint_without_an_address_and_vllm_that_is_missing_are_refused_before_the_training(tmp_path, monkeypatch):
    for name in ("OPENAI_BASE_URL", "BA_LORA_VLLM"):
        monkeypatch.delenv(name, raising=False)
    find = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "vllm" else find(name))
    for backend, message in (("openai", "OPENAI_BASE_URL"), ("vllm", "--eval_backend vllm is not installed")):
        with pytest.raises(UserError, match=message):
            train_and_evaluate(TINY, ["--eval_backend", backend, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
