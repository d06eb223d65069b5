"""Models by name: the model that each name opens, its precision and attention, and the layers adapted by default."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.methods.targets import DEFAULT_TARGETS, default_targets
from ba_lora.models import load_classifier, load_model, load_tokenizer
from ba_lora.tiny import MODEL_DIR
from tests.common import SMALL, small_llama

DENSE = {
    **dict.fromkeys(("llama", "mistral", "qwen2"), SMALL),
    **dict.fromkeys(("gemma", "gemma3_text"), SMALL | {"head_dim": 16}),
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
}


def small(kind, numbers):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **numbers))


def adapted(model):
    return {name.rsplit(".", 3)[0] for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", DENSE)
def test_the_default_layers_of_a_dense_decoder_are_all_linear_layers_but_the_head(kind, monkeypatch):
    named = attach(small(kind, DENSE[kind]), "lora", rank=2, alpha=2)
    monkeypatch.delitem(DEFAULT_TARGETS, kind)
    assert default_targets(named) is None
    assert adapted(named) == adapted(attach(small(kind, DENSE[kind]), "lora", rank=2, alpha=2))
    assert not [name for name in adapted(named) if "lm_head" in name]


def test_every_type_in_the_table_is_tested():
    assert set(DEFAULT_TARGETS) == set(DENSE)


@pytest.fixture
def folder(tmp_path):
    small_llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_implementation_is_the_one_asked_for(folder, attention):
    model, ids = load_model(str(folder), attn_implementation=attention), torch.arange(3, 40)[None]
    assert model.config._attn_implementation == attention
    torch.testing.assert_close(model(ids).logits, small_llama()(ids).logits, rtol=1e-4, atol=1e-5)


def test_flash_attention_says_what_it_lacks(folder, monkeypatch):
    def refusal(dtype):
        with pytest.raises(UserError) as error:
            load_model(str(folder), dtype, attn_implementation="flash_attention_2")
        return str(error.value)

    assert "needs a GPU and there is none here; use sdpa" in refusal("bfloat16")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # the tests have no GPU
    assert "needs the package flash-attn, which is not installed" in refusal("bfloat16")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert "works in bfloat16 and float16, not float32; change --dtype" in refusal("float32")


def test_unknown_names_are_answered_with_the_known_ones(folder):
    with pytest.raises(
        UserError, match="attn_implementation 'flash_attention' is not known, did you mean 'flash_attention_2'"
    ):
        load_model(str(folder), attn_implementation="flash_attention")
    with pytest.raises(UserError, match="dtype 'float' is not known"):
        load_model(str(folder), "float")


def test_code_that_comes_with_a_model_is_not_run_unless_asked(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise RuntimeError('their code ran')\n")
    with pytest.raises(
        UserError, match="needs Python code that its author ships with it.* add --trust_remote_code"
    ) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(RuntimeError, match="their code ran"):
        load_model(str(folder), trust_remote_code=True)


def test_a_model_that_lacks_weights_is_refused_instead_of_being_filled_with_random_ones(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"has no weights for lm_head.weight \(1 tensors are missing\)"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("generation_config.json", '{"watermarking_config": {"foo": 1}}'),
        ("generation_config.json", '{"max_new_tokens": "x"}'),
        ("config.json", {"hidden_size": "x"}),
        ("config.json", {"pad_token_id": 500}),
        ("config.json", {"hidden_act": "zzz"}),
        ("config.json", {"num_attention_heads": 0}),
    ],
)
def test_a_config_that_makes_no_sense_is_named_in_one_line(file, text, tmp_path):
    small_llama().save_pretrained(tmp_path)
    if file == "config.json":
        text = json.dumps(json.loads((tmp_path / file).read_text()) | text)
    (tmp_path / file).write_text(text)
    opens = [load_model] if file == "generation_config.json" else [load_model, lambda name: load_classifier(name, "ab")]
    for each in opens:
        with pytest.raises(UserError, match="config.json or generation_config.json of .* cannot be used") as refused:
            each(str(tmp_path))
        assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


CONTENTS = {"empty": "", "cut": '{"a":', "a list": "[]", "a number": "5", "deep": "[" * 100_000, "zeros": "\0" * 40}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_of_a_tokenizer_is_named_in_one_line(file, content, tmp_path):
    copy_of_tiny = shutil.copytree(MODEL_DIR, tmp_path / "model")
    (copy_of_tiny / file).write_text(CONTENTS[content])
    with pytest.raises(UserError, match=f"{file}.*; give a folder written by save_pretrained") as refused:
        load_tokenizer(str(copy_of_tiny))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"hidden_size": 100}),
        ("config.json", {"num_attention_heads": 7}),
        ("config.json", {"vocab_size": "x"}),
        ("config.json", {"model_type": ["a"]}),
        ("tokenizer.json", {"added_tokens": 5}),
        ("tokenizer.json", {"model": None}),
        ("tokenizer_config.json", {"model_max_length": "x", "added_tokens_decoder": [5]}),
    ],
)
def test_values_that_no_tokenizer_can_have_are_named_in_one_line(file, change, tmp_path):
    copy_of_tiny = shutil.copytree(MODEL_DIR, tmp_path / "model")
    (copy_of_tiny / file).write_text(json.dumps(json.loads((copy_of_tiny / file).read_text()) | change))
    with pytest.raises(UserError, match="of .*model cannot be used|tokenizer in .*model cannot be opened") as refused:
        load_tokenizer(str(copy_of_tiny))
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_is_missing_says_what_was_looked_for(tmp_path):
    copy_of_tiny = shutil.copytree(MODEL_DIR, tmp_path / "model")
    (copy_of_tiny / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="the tokenizer in .*model cannot be opened: .*serialization file"):
        load_tokenizer(str(copy_of_tiny))
