"""The embedded model: its tokenizer, its weights, and the recipe that made them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ba_lora.data.tinymath import generate
from ba_lora.tiny import MODEL_DIR
from ba_lora.tiny.pretrain import main
from ba_lora.tiny.recipe import accuracy, encode_problem, pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

UNUSUAL = [
    "",
    " ",
    "def f(x):\n\treturn x**2  # naïve\r\n\n",
    "漢字 and 🙂, e\u0301 ½ ٣٤ Ω",
    "12 + 345 = 357. It's $1,250.50 !?",
    "<s>not special?</s>",
    "  two  spaces , and a comma .",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR)


@pytest.mark.parametrize("text", UNUSUAL)
def test_decoding_an_encoded_text_gives_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_digit_is_always_one_token(tokenizer):
    for text in ("2024", " 2024", "x2024y", "$2024", "2,024"):
        pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
        assert [p for p in pieces if any(c.isdigit() for c in p)] == list("2024"), pieces


def test_the_tokenizer_adds_nothing_and_its_special_tokens_differ(tokenizer):
    assert tokenizer.encode("") == []
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len(set(special)) == 3
    assert not set(tokenizer.encode("Question: What is 1 + 1?\nAnswer:")) & set(special)


def test_training_ids_are_the_prompt_ids_then_the_response_ids_then_eos(tokenizer):
    problem = {"question": "What is 1 + 1?", "answer": "1 + 1 = 2. The answer is: 2"}
    ids, labels = encode_problem(tokenizer, problem)
    prompt = tokenizer.encode("Question: What is 1 + 1?\nAnswer:")
    response = tokenizer.encode(" 1 + 1 = 2. The answer is: 2") + [tokenizer.eos_token_id]
    assert ids == prompt + response
    assert labels == [-100] * len(prompt) + response


def test_the_model_fits_its_limits(model):
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= 10_000_000
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 8_500_000
    assert 1_500_000 <= model.num_parameters() <= 2_100_000
    assert model.config.head_dim == 32 and not model.config.tie_word_embeddings
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_model_and_tokenizer_agree_on_the_special_tokens(model, tokenizer):
    assert model.config.vocab_size == len(tokenizer)
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_the_model_answers_problems_of_its_own_task(model, tokenizer):
    assert accuracy(model, tokenizer, generate("pretrain-test", 40)) >= 0.8


def test_the_fine_tuning_task_leaves_room_to_learn(model, tokenizer):
    assert 0.05 <= accuracy(model, tokenizer, generate("test", 60)) <= 0.75


def test_the_recipe_states_the_command_and_the_accuracy():
    recipe = json.loads((MODEL_DIR / "recipe.json").read_text())
    assert recipe["command"].startswith("python -m ba_lora.tiny.pretrain")
    assert recipe["accuracy"]["pretrain-test"] >= 0.95


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        pretrain(tmp_path / name, steps=2, batch_size=8, lr=1e-3, seed=seed, held_out=3)
    one, two, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "other"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one if one[key].shape == other[key].shape)
    assert (tmp_path / "one" / "tokenizer.json").read_text() == (tmp_path / "two" / "tokenizer.json").read_text()


def test_a_trained_folder_opens_like_any_other_and_leaves_nothing_beside_it(tmp_path):
    recipe = pretrain(tmp_path / "model", steps=1, batch_size=4, lr=1e-3, seed=0, held_out=2)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert json.loads((tmp_path / "model" / "recipe.json").read_text()) == recipe
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model(torch.tensor([tokenizer.encode("x")])).logits.shape == (1, 1, len(tokenizer))


def test_an_option_out_of_range_is_named(tmp_path):
    with pytest.raises(Exception, match="--steps is 0"):
        main(["--output", str(tmp_path / "model"), "--steps", "0"])
