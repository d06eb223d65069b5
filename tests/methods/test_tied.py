"""An adapted layer whose weight is tied to the embeddings: start, export and merge affect that layer alone."""

import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from ba_lora.errors import UserError
from ba_lora.files import read_json
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export, export_merged, load
from ba_lora.methods.teacher import teacher
from ba_lora.models import load_classifier, load_model, load_tokenizer
from ba_lora.objective.settings import Objective
from ba_lora.training.objective_model import ObjectiveModel
from tests.common import VOCABULARY, collate, move, ragged_samples, small_llama

GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
PEFT_METHODS = ["lora", "pissa", "ba-lora", "dora", "adalora", "loha"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Tied models of two kinds, saved with some tokenizer."""
    home = tmp_path_factory.mktemp("tied")
    torch.manual_seed(0)
    for name, model in {
        "llama": small_llama(tie_word_embeddings=True),
        "gpt2": GPT2LMHeadModel(GPT2Config(**GPT2)),
    }.items():
        model.save_pretrained(home / name)
        load_tokenizer("tiny").save_pretrained(home / name)
    return {name: str(home / name) for name in ("llama", "gpt2")}


def train(model):
    """Train a little; returns the model in evaluation mode."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = collate(ragged_samples(4))
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize(
    ("method", "base", "targets"),
    [
        *[(method, "llama", ["lm_head"]) for method in ("lora", "pissa", "dora")],
        *[
            ("pissa", "gpt2", ["lm_head"]),
            ("lora", "gpt2", ["lm_head", "other"]),
            ("loha", "gpt2", ["lm_head", "other"]),
        ],
        *[("ba-lora", "llama", ["lm_head", "other"]), ("adalora", "llama", ["lm_head", "other"])],
        *[
            pytest.param(method, base, ["lm_head", "other"], marks=pytest.mark.slow)
            for method in PEFT_METHODS
            for base in ("llama", "gpt2")
        ],
    ],
)
def test_start_adapter_and_merged_model_are_those_of_an_untied_head(method, base, targets, bases, tmp_path, caplog):
    other = {"llama": "q_proj", "gpt2": "c_attn"}[base]
    targets = [other if name == "other" else name for name in targets]
    original, batch = load_model(bases[base]), collate(ragged_samples(4))
    batch.pop("labels")
    expected = original(**batch).logits
    with caplog.at_level(logging.WARNING):
        model = attach(load_model(bases[base]), method, rank=4, alpha=4, target_modules=targets, total_steps=20)
    assert "lm_head shares its weight with" in caplog.text
    torch.testing.assert_close(model.eval()(**batch).logits, expected, **CLOSE)
    move(train(model))
    trained = model(**batch).logits
    assert (trained - expected).abs().max() > 1e-3
    with teacher(model):
        torch.testing.assert_close(model(**batch).logits, expected, **CLOSE)
    export(model, tmp_path / "adapter")
    opened = load(tmp_path / "adapter", bases[base])
    torch.testing.assert_close(opened(**batch).logits, trained, **CLOSE)
    if method != "loha" or base == "llama":  # LoHa swaps GPT-2's layers, of which stock PEFT knows nothing
        stock = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(bases[base]), tmp_path / "adapter"
        ).eval()
        torch.testing.assert_close(stock(**batch).logits, trained, **CLOSE)
    export_merged(tmp_path / "adapter", bases[base], tmp_path / "merged")
    for merged in (
        load_model(str(tmp_path / "merged")),
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval(),
    ):
        torch.testing.assert_close(merged(**batch).logits, trained, **CLOSE)
        torch.testing.assert_close(merged.get_input_embeddings().weight, original.get_input_embeddings().weight)
    assert read_json(tmp_path / "merged/config.json")["tie_word_embeddings"] is False


@torch.no_grad()
def test_a_merge_by_peft_of_what_was_opened_is_right_too(bases, tmp_path):
    with torch.enable_grad():
        model = train(attach(load_model(bases["llama"]), "pissa", rank=4, alpha=4, target_modules=["lm_head"]))
    batch = collate(ragged_samples(4))
    expected = model(**batch).logits
    export(model, tmp_path / "adapter")
    for opened in (load(tmp_path / "adapter", bases["llama"]), model):
        merged = opened.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, **CLOSE)
        merged.save_pretrained(tmp_path / "whole")
        torch.testing.assert_close(load_model(str(tmp_path / "whole"))(**batch).logits, expected, **CLOSE)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": True},
        {"target_modules": ["lm_head"], "use_dora": True},
    ],
    ids=["head saved whole", "embeddings saved whole", "embeddings", "both", "DoRA"],
)
def test_an_adapter_by_stock_peft_on_a_tied_base_opens_and_merges(options, bases, tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(load_model(bases["llama"]), LoraConfig(r=2, task_type="CAUSAL_LM", **options))
    batch = collate(ragged_samples(4))
    trained = train(model)(**batch).logits
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    torch.testing.assert_close(load(tmp_path / "adapter", bases["llama"])(**batch).logits, trained, **CLOSE)
    export_merged(tmp_path / "adapter", bases["llama"], tmp_path / "merged")
    torch.testing.assert_close(load_model(str(tmp_path / "merged"))(**batch).logits, trained, **CLOSE)


@pytest.mark.parametrize("method", ["lora", "pissa", "dora"])
def test_layers_tied_to_each_other_are_refused_in_one_line(method):
    model = small_llama()
    first, second = (layer.self_attn for layer in model.model.layers)
    second.q_proj.weight = first.q_proj.weight
    with pytest.raises(UserError, match="q_proj shares its weight with .*q_proj.*leave it out") as refused:
        attach(model, method, rank=2, alpha=2, target_modules=["q_proj"])
    assert "\n" not in str(refused.value)
    attach(model, method, rank=2, alpha=2, target_modules=["v_proj"])


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_dora_of_a_row_of_zeros_is_refused_and_other_methods_take_it(base):
    target = {"llama": "lm_head", "gpt2": "c_fc"}[base]  # the row of the padding token; a column of a Conv1D

    def made():
        torch.manual_seed(0)
        model = (
            small_llama(tie_word_embeddings=True, pad_token_id=2)
            if base == "llama"
            else GPT2LMHeadModel(GPT2Config(**GPT2))
        )
        if base == "gpt2":
            model.transformer.h[1].mlp.c_fc.weight.data[:, 5] = 0
        return model

    with pytest.raises(UserError, match=f"dora.* row {2 if base == 'llama' else 5} of .*{target} is all zeros"):
        attach(made(), "dora", rank=2, alpha=2, target_modules=[target])
    batch = collate(ragged_samples(4))
    for method in ("lora", "pissa"):
        model = attach(made(), method, rank=2, alpha=2, target_modules=[target]).eval()
        torch.testing.assert_close(model(**batch).logits, made().eval()(**batch).logits, **CLOSE)


def test_a_layer_that_two_places_use_and_a_head_with_a_tied_bias_are_refused():
    model = small_llama()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(UserError, match="shares its weight"):
        attach(model, "pissa", rank=2, alpha=2, target_modules=["up_proj"])
    config = BertConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    config.is_decoder = True
    with pytest.raises(UserError, match="shares its weight"):
        attach(BertLMHeadModel(config), "lora", rank=2, alpha=2, target_modules=["decoder"])


def test_an_adapter_on_layers_that_were_tied_to_each_other_opens_and_is_not_merged(tmp_path):
    def base():
        model = small_llama()
        model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
        return model

    model = train(get_peft_model(base(), LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM")))
    model.save_pretrained(tmp_path)
    batch = collate(ragged_samples(4))
    torch.testing.assert_close(load(tmp_path, base())(**batch).logits, model(**batch).logits, **CLOSE)
    with pytest.raises(UserError, match="cannot be adapted or merged alone"):
        export_merged(tmp_path, base(), tmp_path / "merged")


@pytest.mark.parametrize("method", ["lora", "pissa", "dora"])
def test_albert_whose_layers_are_one_starts_and_merges_as_it_should(method, tmp_path):
    sizes = {"vocab_size": 97, "hidden_size": 32, "embedding_size": 16, "intermediate_size": 48, "num_hidden_layers": 3}
    torch.manual_seed(0)
    AlbertForSequenceClassification(AlbertConfig(**sizes, num_attention_heads=2, num_labels=3)).save_pretrained(
        tmp_path / "base"
    )
    load_tokenizer("tiny").save_pretrained(tmp_path / "base")
    batch = {"input_ids": torch.arange(3, 27).view(3, 8)}
    original, head = load_classifier(str(tmp_path / "base"), ["a", "b", "c"])
    expected = original(**batch).logits
    model = attach(original, method, rank=2, alpha=2, head=head)
    torch.testing.assert_close(model.eval()(**batch).logits, expected, **CLOSE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter += 0.05
    export(model, tmp_path / "adapter")
    export_merged(tmp_path / "adapter", str(tmp_path / "base"), tmp_path / "merged")
    torch.testing.assert_close(load(tmp_path / "merged")(**batch).logits, model(**batch).logits, **CLOSE)


def test_full_fine_tuning_of_a_tied_model_stays_tied_and_opens_as_trained(bases, tmp_path):
    model = train(attach(load_model(bases["llama"]), "full", rank=1, alpha=1, keep_initial=True))
    batch = collate(ragged_samples(4))
    export(model, tmp_path / "model")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(opened(**batch).logits, model(**batch).logits)
    assert opened.lm_head.weight is opened.model.embed_tokens.weight


def test_other_targets_leave_a_tied_model_tied(bases):
    model = attach(load_model(bases["llama"]), "pissa", rank=2, alpha=2).get_base_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.config.tie_word_embeddings


def test_the_objective_of_a_model_with_an_adapted_tied_head_is_the_dense_one(bases):
    batch, losses = collate(ragged_samples(4)), []
    for chunked in (True, False):
        model = attach(load_model(bases["llama"]), "ba-lora", rank=2, alpha=2, target_modules=["lm_head", "q_proj"])
        wrapped = ObjectiveModel(model, Objective.preset("iclr"), chunked=chunked).train()
        output = wrapped(**batch)
        assert output.logits is not None
        losses.append(output.loss)
    assert torch.equal(*losses)


def test_a_quantised_base_keeps_the_tied_embeddings_and_exports_for_the_full_one(tmp_path):
    pytest.importorskip("bitsandbytes")
    from ba_lora.methods.quantisation import quantise

    sizes = {"hidden_size": 64, "intermediate_size": 64}
    small_llama(**sizes, tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    untied = small_llama(**sizes)
    untied.load_state_dict(load_model(str(tmp_path / "base")).state_dict())
    batch, made = collate(ragged_samples(4)), []
    for model in (load_model(str(tmp_path / "base")), untied):
        embeddings = model.get_input_embeddings().weight.clone()
        model = attach(model, "pissa", rank=8, alpha=8, target_modules=["lm_head"])
        quantise(model)
        assert torch.equal(model.get_input_embeddings().weight, embeddings)
        made.append(model(**batch).logits)
    assert torch.equal(*made)
    move(attached := attach(load_model(str(tmp_path / "base")), "pissa", rank=8, alpha=8, target_modules=["lm_head"]))
    expected = attached(**batch).logits
    quantise(attached)
    export(attached, tmp_path / "adapter")
    opened = load(tmp_path / "adapter", str(tmp_path / "base"))
    torch.testing.assert_close(opened(**batch).logits, expected, **CLOSE)
