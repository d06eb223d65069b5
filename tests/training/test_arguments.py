"""Options: every shipped config parses; every bad value ends in one line that names it and the remedy."""

from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.training.command_line import as_config, changed_options, config_words, make_parser, parse
from tests.common import command

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "nlg").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses(config):
    arguments = parse(["--config", str(config), "--output_dir", "x"])
    given = {word.removeprefix("--") for word in config_words(config) if word.startswith("--")}
    assert given and arguments.accumulation(1) >= 1


def test_the_command_line_overrides_the_config(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("rank: 8\nlearning_rate: 1e-4\nfields: [a, b]\nlimit: none\nmerge: true\n")
    arguments = parse(["--config", str(config), "--output_dir", "x", "--rank", "4"])
    assert (arguments.rank, arguments.alpha, arguments.learning_rate, arguments.fields) == (4, 4.0, 1e-4, ["a", "b"])
    assert arguments.limit is None and arguments.merge is True


def test_presets_and_changes_reach_the_objective():
    words = ["--output_dir", "x", "--preset", "paper-v5", "--lambda2", "0.5", "--top_k", "7"]
    objective = parse(words).objective()
    assert (objective.lambda1, objective.lambda2, objective.top_k, objective.svd_k) == (1e-4, 0.5, 7, 3)
    assert parse([*words[:2], "--top_k", "0"]).objective().top_k is None


def test_regularizers_are_on_for_ba_lora_and_off_for_the_others_unless_asked():
    def weights(*words):
        objective = parse(["--output_dir", "x", *words]).objective()
        return (objective.lambda1, objective.lambda2, objective.lambda3)

    assert weights("--method", "ba-lora") == (0.025, 0.005, 0.005)
    assert weights("--method", "pissa") == (0, 0, 0)
    assert weights("--method", "lora", "--regularizers", "on") == (0.025, 0.005, 0.005)
    assert weights("--method", "ba-lora", "--regularizers", "off") == (0, 0, 0)


def test_the_effective_batch_is_kept_for_any_number_of_processes():
    arguments = parse(["--output_dir", "x", "--effective_batch_size", "32", "--micro_batch_size", "4"])
    assert [arguments.accumulation(ranks) for ranks in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(UserError, match="32 is not a multiple of --micro_batch_size 4 × 3 processes"):
        arguments.accumulation(3)


BAD = [
    (["--lerning_rate", "1"], "unknown option --lerning_rate, did you mean '--learning_rate'"),
    (["--method", "pisa"], "method 'pisa' is not known, did you mean 'pissa'"),
    (["--preset", "iclr-2026"], "preset 'iclr-2026' is not known, did you mean 'iclr'"),
    (["--lambda1_schedule", "cosin"], "did you mean 'cosine'"),
    (["--svd_k", "0"], "svd_k must be at least 1, got 0"),
    (["--rank", "abc"], "argument --rank: 'abc' is not a whole number"),
    (["--rank", "0"], "--rank must be at least 1, got 0"),
    (["--limit", "0"], "--limit must be at least 1, got 0"),
    (["--dropout", "0.1"], "--dropout 0.1 does not go with a PiSSA start"),
    (["--method", "lora", "--lambda1", "0.1"], "runs without the regularizers; add --regularizers on"),
    (["--learning_rate", "-1"], "--learning_rate must be positive"),
    (["--fields", "a", "b", "c", "d"], "--fields takes one, two or three names"),
    (["--template", "alpacca"], "did you mean 'alpaca'"),
    (["--resume", "--overwrite"], "give one of them"),
    (["--method", "full", "--merge"], "leave it out"),
    (["--epochs", "0"], "--epochs must be positive and finite, got 0.0"),
    (["--epochs", "-1"], "--epochs must be positive and finite, got -1.0"),
    (["--epochs", "nan"], "--epochs must be positive and finite, got nan"),
    (["--epochs", "inf"], "--epochs must be positive and finite, got inf"),
    (["--epochs", "0", "--max_steps", "5"], "--epochs must be positive and finite, got 0.0"),
    (["--max_steps", "0"], "--max_steps must be at least 1, or -1 to train for --epochs, got 0"),
    (["--max_steps", "-2"], "--max_steps must be at least 1, or -1 to train for --epochs, got -2"),
    (["--learning_rate", "0"], "--learning_rate must be positive and finite, got 0.0"),
    (["--learning_rate", "nan"], "--learning_rate must be positive and finite, got nan"),
    (["--learning_rate", "inf"], "--learning_rate must be positive and finite, got inf"),
    (["--alpha", "0"], "--alpha must be positive and finite, got 0.0"),
    (["--alpha", "nan"], "--alpha must be positive and finite, got nan"),
    (["--method", "lora", "--dropout", "1"], "--dropout must be at least 0 and below 1, got 1.0"),
    (["--method", "lora", "--dropout", "-0.1"], "--dropout must be at least 0 and below 1, got -0.1"),
    (["--warmup_ratio", "1"], "--warmup_ratio must be at least 0 and below 1, got 1.0"),
    (["--warmup_ratio", "nan"], "--warmup_ratio must be at least 0 and below 1, got nan"),
    (["--weight_decay", "-1"], "--weight_decay must be at least 0 and finite, got -1.0"),
    (["--max_grad_norm", "nan"], "--max_grad_norm must be at least 0 and finite, got nan"),
    (["--effective_batch_size", "0"], "--effective_batch_size must be at least 1, got 0"),
    (["--micro_batch_size", "-4"], "--micro_batch_size must be at least 1, got -4"),
    (["--save_steps", "-1"], "--save_steps must be at least 0, got -1"),
    (["--seed", "-1"], "--seed must be at least 0 and below 2^32, got -1"),
    (["--eval_limit", "0"], "--eval_limit must be at least 1, got 0"),
    (["--limit", "-3"], "--limit must be at least 1, got -3"),
    (["--lambda2", "nan"], "lambda2 must be a number of at least 0, got nan"),
    (["--lambda3", "inf"], "lambda3 must be a number of at least 0, got inf"),
    (["--temperature", "inf"], "temperature must be positive and finite, got inf"),
    (["--lambda1_min", "nan"], "lambda1_min must be a number of at least 0, got nan"),
    (["--task", "sst2", "--model", "x", "--label_noise", "nan"], "--label_noise is a share of the labels"),
    (["--config", "none.yaml"], "config file none.yaml does not exist"),
    (["--merge", "perhaps"], "'perhaps' is neither true nor false"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_options_end_in_one_line(words, message):
    with pytest.raises(UserError) as error:
        parse(["--output_dir", "x", *words])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_configs_end_in_one_line(tmp_path):
    for text, message in [
        ("lerning_rate: 1", "unknown option 'lerning_rate', did you mean 'learning_rate'"),
        ("a: [1", "is not valid YAML"),
        ("- a", "must hold 'option: value' lines"),
    ]:
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=message) as error:
            parse(["--config", str(tmp_path / "c.yaml"), "--output_dir", "x"])
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--output_dir is missing"):
        parse([])


def test_help_names_every_option_with_its_default():
    text = make_parser().format_help()
    for word in ("--lambda1", "--svd_norm", "--effective_batch_size", "[none]", "pissa_niter_N", "two_phase"):
        assert word in text


def test_an_unknown_option_ends_the_command_with_status_2_and_one_line():
    done = command("train.py", "--lerning_rate", "1")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: unknown option --lerning_rate")
    assert "Traceback" not in done.stderr


def test_a_config_of_an_earlier_version_differs_only_in_what_was_set():
    arguments = parse(["--output_dir", "somewhere", "--rank", "4"])
    recorded = as_config(arguments)
    assert changed_options(recorded, arguments) == {}
    earlier = {name: value for name, value in recorded.items() if name != "tf32"} | {"gone_since": 3}
    assert changed_options(earlier, arguments) == {}
    assert changed_options(recorded | {"rank": 8}, arguments) == {"rank": (8, 4)}
    arguments.tf32 = True
    assert changed_options(earlier, arguments) == {"tf32": (False, True)}


def test_a_config_of_the_project_is_found_from_any_folder_and_one_that_is_here_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--config", "configs/nlg/tiny.yaml", "--output_dir", "x"]
    assert parse(words).max_length == 256
    elsewhere = parse([*words, "--deepspeed", "configs/deepspeed/zero2.json"])
    assert Path(elsewhere.deepspeed).is_file()
    monkeypatch.chdir(ROOT)
    here = parse([*words, "--deepspeed", "configs/deepspeed/zero2.json"])
    assert as_config(here)["deepspeed"] == as_config(elsewhere)["deepspeed"] == "configs/deepspeed/zero2.json"
    assert changed_options(as_config(here), elsewhere) == {}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/nlg").mkdir(parents=True)
    (tmp_path / "configs/nlg/tiny.yaml").write_text("max_length: 9\n")
    assert parse(words).max_length == 9
