"""One config by one command: the data of its benchmarks, and what is left if one of them fails."""

import json
from pathlib import Path

import pytest

import eval.all
from ba_lora.errors import UserError
from ba_lora.experiments.benchmark_data import column_of, data_of
from ba_lora.experiments.single import train_and_evaluate
from ba_lora.training.command_line import parse

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
    words = ["--benchmarks", "gsm8k", "mbpp", "--eval_data", "gsm8k=tinymath:test", f"mbpp={tmp_path}/none.jsonl"]
    with pytest.raises(UserError, match=r"none\.jsonl"):
        train_and_evaluate(TINY, [*words, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_benchmark_that_fails_leaves_the_run_and_a_card_with_the_others(tmp_path, monkeypatch):
    def fails(words):
        raise UserError("bubblewrap is missing")

    monkeypatch.setattr("eval.humaneval.main", fails)
    monkeypatch.setattr(eval.all, "check_data", lambda *names: None)
    words = ["--limit", "32", "--eval_limit", "2", "--progress", "false", "--output_dir", str(tmp_path / "run")]
    words += ["--benchmarks", "humaneval", "gsm8k", "--eval_data", "gsm8k=tinymath:test"]
    with pytest.raises(UserError, match="^humaneval has no score: bubblewrap is missing$"):
        train_and_evaluate(TINY, words)
    assert json.loads((tmp_path / "run" / "eval" / "gsm8k" / "score.json").read_text())["n"] == 2
    assert "| gsm8k | tinymath |" in (tmp_path / "run" / "adapter" / "README.md").read_text()
