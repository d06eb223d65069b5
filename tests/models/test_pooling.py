"""A classifier's score is that of the last real token, which the attention mask determines, whatever the padding ids are."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from ba_lora.data.pairs import PadPairs
from ba_lora.errors import UserError
from ba_lora.features.saver import features_of
from ba_lora.files import read_json
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export, export_merged, load
from ba_lora.models import load_classifier, load_tokenizer
from ba_lora.models.pooling import agree_on_padding
from ba_lora.objective.settings import Objective
from ba_lora.training.classifier_model import ClassifierModel
from tests.common import SMALL, VOCABULARY, small_llama

SHORT, LONG = list(range(10, 16)), list(range(10, 30))
SIZES = {
    **SMALL,
    **{"head_dim": 16, "max_position_embeddings": 64, "num_labels": 3, "ffn_dim": 48, "word_embed_proj_dim": 32},
}
OTHERS = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 48}
KINDS = {  # one for each way in which transformers writes such a head
    "llama": SIZES,
    "gemma2": SIZES,
    "qwen3": SIZES,
    "gpt_neox": SIZES,
    "opt": SIZES,
    "modernbert-decoder": SIZES,
    "gpt2": {"vocab_size": VOCABULARY, **OTHERS, "num_labels": 3},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 2, "num_labels": 3},
    "xlnet": {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48, "num_labels": 3},
}


def batch(rows, pad, left=False):
    """Rows of ids as a padded batch with its mask."""
    width = max(map(len, rows))
    empty = [[pad] * (width - len(row)) for row in rows]
    ids = [gap + row if left else row + gap for row, gap in zip(rows, empty, strict=True)]
    mask = [
        [0] * len(gap) + [1] * len(row) if left else [1] * len(row) + [0] * len(gap)
        for row, gap in zip(rows, empty, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def classifier(folder, kind="llama", pad=2, **changes):
    """A saved classifier, opened by our code."""
    config = AutoConfig.for_model(kind, **KINDS.get(kind, {}) | {"pad_token_id": pad, "eos_token_id": 1} | changes)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return load_classifier(str(folder), ["a", "b", "c"])[0]


@pytest.mark.parametrize("pad", [2, 3, 1], ids=["agreeing", "another", "the end of sequence"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_score_of_a_text_does_not_depend_on_the_texts_beside_it(kind, pad, tmp_path):
    model = classifier(tmp_path, kind)
    alone = model(**batch([SHORT], pad)).logits[0]
    torch.testing.assert_close(model(**batch([SHORT, LONG], pad)).logits[0], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
@torch.no_grad()
def test_a_padding_id_that_is_a_real_token_of_the_text_counts_as_real(kind, tmp_path):
    model, ends = classifier(tmp_path, kind, pad=1), [*SHORT, 1]  # as a template writes it: the text ends in pad == eos
    expected = model.score(model(**batch([ends], 1), output_hidden_states=True).hidden_states[-1])[0, -1]
    torch.testing.assert_close(model(**batch([ends], 1)).logits[0], expected)
    torch.testing.assert_close(model(**batch([ends, LONG], 1)).logits[0], expected, rtol=1e-4, atol=1e-5)


ENCODERS = {  # bodies that look for the padding id, and bodies that do not
    "mobilebert": {**SIZES, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "plbart": {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 1, "decoder_layers": 1},
    "roberta": SIZES,
}


def encoder(folder, kind, **changes):
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "initializer_range": 0.2}
    return classifier(folder, kind, **{**heads, **ENCODERS[kind], "vocab_size": VOCABULARY, "num_labels": 3} | changes)


@pytest.mark.parametrize("method", [None, "lora"])
@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_the_score_of_an_encoder_does_not_depend_on_the_ids_of_padding(kind, method, tmp_path):
    model = encoder(tmp_path, kind)
    if method:
        model = attach(model, method, rank=2, alpha=2).eval()
    short, long = [*SHORT, 1], [*LONG, 1]
    alone = model(**batch([short], 3)).logits[0]
    for pad in (2, 3, 5):
        torch.testing.assert_close(model(**batch([short, long], pad)).logits[0], alone, rtol=1e-4, atol=1e-5)


def test_an_encoder_decoder_whose_texts_are_padded_with_their_end_is_refused(tmp_path):
    model = encoder(tmp_path, "plbart")
    agree_on_padding(model, SimpleNamespace(pad_token_id=2, eos_token_id=1))
    with pytest.raises(UserError, match="pads with its end of sequence, which a PLBartForSequenceClassification"):
        agree_on_padding(model, SimpleNamespace(pad_token_id=None, eos_token_id=1))


@torch.no_grad()
def test_an_adapter_opened_on_a_stock_classifier_follows_the_mask_too(tmp_path):
    model = attach(classifier(tmp_path / "base"), "lora", rank=2, alpha=2).eval()
    export(model, tmp_path / "adapter")
    expected = model(**batch([SHORT], 3)).logits[0]
    stock = LlamaForSequenceClassification.from_pretrained(tmp_path / "base")
    opened = load(tmp_path / "adapter", stock)
    torch.testing.assert_close(opened(**batch([SHORT, LONG], 3)).logits[0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_on_the_left_gives_the_last_token_too(tmp_path):
    model = classifier(tmp_path)
    alone = model(**batch([SHORT], 3)).logits[0]
    padded = batch([SHORT, LONG], 1, left=True)
    positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(model(**padded, position_ids=positions).logits[0], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_where_the_ids_agree_every_bit_is_as_transformers_computes_it(kind):
    config = AutoConfig.for_model(kind, **KINDS[kind] | {"pad_token_id": 2, "eos_token_id": 1})
    torch.manual_seed(0)
    stock = AutoModelForSequenceClassification.from_config(config)
    torch.manual_seed(0)
    ours = attach(AutoModelForSequenceClassification.from_config(config), "full", rank=1, alpha=1)
    made = []
    for model in (stock, ours):
        output = model.eval()(**batch([SHORT, LONG, SHORT[:3]], 2), labels=torch.tensor([0, 1, 2]))
        output.loss.backward()
        made.append((output.logits, output.loss, {name: value.grad for name, value in model.named_parameters()}))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])
    assert all(torch.equal(made[0][2][name], made[1][2][name]) for name in made[0][2])


@torch.no_grad()
def test_a_config_without_a_padding_id_takes_batches_and_a_nested_one_too(tmp_path):
    for folder, changes in (("none", {"pad": None}), ("neither", {"pad": None, "eos_token_id": None})):
        model = classifier(tmp_path / folder, **changes)
        alone = model(**batch([SHORT], 3)).logits[0]
        torch.testing.assert_close(model(**batch([SHORT, LONG], 3)).logits[0], alone, rtol=1e-4, atol=1e-5)
    sizes = {**SIZES, "mm_tokens_per_image": 4, "sliding_window": 32}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    text = Gemma3TextConfig(**sizes | {"pad_token_id": None}).to_dict()
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, num_labels=3, pad_token_id=None, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "nested")
    model = load_classifier(str(tmp_path / "nested"), ["a", "b", "c"])[0]
    alone = model(**batch([SHORT], 3)).logits[0]
    torch.testing.assert_close(model(**batch([SHORT, LONG], 3)).logits[0], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("regularize", ["logits", "features"])
def test_the_objective_and_the_features_see_the_token_that_the_score_comes_from(regularize, tmp_path):
    model = attach(classifier(tmp_path), "lora", rank=2, alpha=2)
    objective = Objective.preset("iclr", task="nlu", svd_k=1)
    wrapped = ClassifierModel(model, objective, regularize=regularize)
    labels = torch.tensor([0, 1, 2])
    losses = [wrapped(**batch([SHORT, LONG, SHORT[:4]], pad), labels=labels).loss for pad in (1, 2, 3)]
    torch.testing.assert_close(losses[1:], losses[:1] * 2, rtol=1e-4, atol=1e-5)
    samples = [{"input_ids": row, "labels": 0} for row in (SHORT, LONG)]
    taken = [
        features_of(
            model, samples, lambda rows, pad=pad: {**batch([r["input_ids"] for r in rows], pad), "labels": labels[:2]}
        )
        for pad in (1, 3)
    ]
    scores = model.get_base_model().score(torch.tensor(taken[0][0]))
    torch.testing.assert_close(scores, model(**batch([SHORT, LONG], 3)).logits, rtol=1e-4, atol=1e-5)
    assert abs(taken[0][0] - taken[1][0]).max() < 1e-5


@torch.no_grad()
def test_an_adapted_classifier_reads_the_mask_after_it_is_saved_opened_and_merged(tmp_path):
    model = attach(classifier(tmp_path / "base", pad=None), "lora", rank=2, alpha=2)
    export(model, tmp_path / "adapter")
    load_tokenizer("tiny").save_pretrained(tmp_path / "base")
    export_merged(tmp_path / "adapter", str(tmp_path / "base"), tmp_path / "merged")
    expected = model(**batch([SHORT], 3)).logits[0]
    for opened in (load(tmp_path / "adapter"), load(tmp_path / "merged")):
        torch.testing.assert_close(opened(**batch([SHORT, LONG], 3)).logits[0], expected, rtol=1e-4, atol=1e-5)
    # the saved config has the tokenizer's padding id, by which other software finds the token
    pad = load_tokenizer(str(tmp_path / "merged")).pad_token_id
    stock = LlamaForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert read_json(tmp_path / "merged" / "config.json")["pad_token_id"] == pad
    torch.testing.assert_close(stock(**batch([SHORT, LONG], pad)).logits[0], expected, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_without_any_padding_pads_with_some_id_that_the_mask_hides():
    collate = PadPairs(SimpleNamespace(pad_token_id=None, eos_token_id=None))
    made = collate([{"input_ids": SHORT}, {"input_ids": LONG}])
    assert made["attention_mask"].sum(1).tolist() == [6, 20] and made["input_ids"][0, 6:].unique().numel() == 1


def test_a_head_that_cannot_follow_the_mask_is_refused(tmp_path):
    part = {**SIZES, "num_hidden_layers": 1, "layer_types": ["full_attention"], "sliding_window": 32}
    config = AutoConfig.for_model("t5gemma", encoder=part, decoder=part, num_labels=3, vocab_size=VOCABULARY)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="T5GemmaForSequenceClassification.*depends on padding"):
        load_classifier(str(tmp_path), ["a", "b", "c"])


def test_the_embedded_model_with_another_padding_id_in_its_config(tmp_path):
    small_llama(pad_token_id=None, eos_token_id=1).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("pad_token_id") is None
    model, collate = load_classifier(str(tmp_path), ["a", "b"])[0], PadPairs(load_tokenizer("tiny"))
    short, long = {"input_ids": SHORT}, {"input_ids": LONG}
    one, two = model(**collate([short])).logits[0], model(**collate([short, long])).logits[0]
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert isinstance(model.config, LlamaConfig)
