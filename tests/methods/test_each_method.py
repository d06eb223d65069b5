"""Each method alone: the parameters that it trains, its files and refusals, and how many parameters it has on DeBERTa-v3-base."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, DebertaV2Config

from ba_lora.errors import UserError
from ba_lora.methods.adalora import after_step, penalty
from ba_lora.methods.attach import attach
from ba_lora.methods.bottleneck import Bottleneck
from ba_lora.methods.save import export, export_merged, load, trained_parameters
from tests.common import collate, ragged_samples, small_llama
from tests.methods.classifiers import HEADS, STEPS, V3, batch_for, classifier, close, owner_of, train

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
