"""Targets by a pattern, all-linear and layer numbers; the scaling by the root of the rank."""

import json
import math
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export, export_merged, load
from ba_lora.methods.target_names import layers_of, targets_of
from ba_lora.methods.targets import names_for_peft
from ba_lora.methods.teacher import teacher
from ba_lora.models import load_model
from ba_lora.tiny import MODEL_DIR
from ba_lora.training.command_line import parse
from tests.common import collate, move, ragged_samples, small_classifier, small_llama

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
ATTENTION = r".*self_attn\.(q|v)_proj"
FIRST = r"model\.layers\.0\..*_proj"


def adapted(model):
    return sorted(name for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer))


def without_labels(count=4):
    batch = collate(ragged_samples(count))
    return {name: value for name, value in batch.items() if name != "labels"}


@pytest.mark.parametrize("targets", [ATTENTION, FIRST, "all-linear", r".*\.(gate_proj|k_proj)"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_pattern_and_all_linear_adapt_the_layers_that_peft_adapts(targets, tied):
    ours = attach(small_llama(tie_word_embeddings=tied), "lora", rank=2, alpha=2, target_modules=targets)
    stock = get_peft_model(small_llama(), LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    assert adapted(ours) == adapted(stock) and "lm_head" not in adapted(ours)


def test_layers_adapt_the_layers_that_peft_adapts():
    for targets in (["q_proj", "up_proj"], None, "all-linear"):
        ours = attach(small_llama(num_hidden_layers=4), "lora", rank=2, alpha=2, target_modules=targets, layers=(1, 3))
        names = targets if isinstance(targets, list) else [*"qkvo", "gate", "up", "down"]
        names = [name if "_" in name else f"{name}_proj" for name in names]
        config = LoraConfig(r=2, target_modules=names, layers_to_transform=[1, 3], task_type="CAUSAL_LM")
        assert adapted(ours) == adapted(get_peft_model(small_llama(num_hidden_layers=4), config))
        assert {name.split(".")[2] for name in adapted(ours)} == {"1", "3"}


@pytest.mark.parametrize("kind", ["roberta-large", "gpt2-xl"])
def test_all_linear_and_a_pattern_leave_the_head_of_a_classifier(kind):
    for targets in ("all-linear", r".*(dense|c_proj|c_attn|query)", None):
        model = attach(small_classifier(kind), "lora", rank=2, alpha=2, target_modules=targets)
        head = model.attached.head
        assert head and adapted(model)
        assert not any(name == part or name.startswith(f"{part}.") for name in adapted(model) for part in head)


def test_names_are_short_where_they_choose_the_same_layers():
    model = small_llama()
    assert names_for_peft(model, ATTENTION) == ["q_proj", "v_proj"]
    assert names_for_peft(model, FIRST)[0] == "model.layers.0.self_attn.q_proj"
    assert names_for_peft(model, ["q_proj"]) == ["q_proj"] and names_for_peft(model, None) is None


FORMS = ("residual", "delta", "lora")
CHOICES = ({"target_modules": r"lm_head|.*q_proj"}, {"layers": (1,)}, {"target_modules": FIRST}, {"rslora": True})


@pytest.mark.parametrize(
    ("form", "choice"),
    [
        pytest.param(form, choice, marks=[] if FORMS.index(form) == CHOICES.index(choice) else pytest.mark.slow)
        for form in FORMS
        for choice in CHOICES
    ],
)
def test_start_teacher_export_and_merge_are_those_of_the_chosen_layers(form, choice, tmp_path):
    small_llama(tie_word_embeddings="target_modules" in choice, vocab_size=768).save_pretrained(tmp_path / "base")
    for file in MODEL_DIR.glob("tokenizer*"):
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    base, batch = str(tmp_path / "base"), without_labels()
    start = {"start_form": form} if form != "lora" else {"init": "lora"}
    with torch.no_grad():
        expected = load_model(base)(**batch).logits
        model = attach(load_model(base), "ba-lora", rank=4, alpha=6, **start, **choice).eval()
        torch.testing.assert_close(model(**batch).logits, expected, **CLOSE)
        move(model)
        trained = model(**batch).logits
        assert (trained - expected).abs().max() > 1e-2
        with teacher(model):
            torch.testing.assert_close(model(**batch).logits, expected, **CLOSE)
        export(model, tmp_path / "adapter")
        stock = PeftModel.from_pretrained(load_model(base), tmp_path / "adapter")
        torch.testing.assert_close(stock(**batch).logits, trained, **CLOSE)
        torch.testing.assert_close(load(tmp_path / "adapter", base)(**batch).logits, trained, **CLOSE)
        export_merged(tmp_path / "adapter", base, tmp_path / "merged")
        torch.testing.assert_close(load_model(str(tmp_path / "merged"))(**batch).logits, trained, **CLOSE)


@pytest.mark.parametrize(("start", "rank"), [({"init": "lora"}, 4), ({}, 8), ({"start_form": "delta"}, 8)])
def test_the_scaling_is_alpha_by_the_root_of_the_rank_in_training_and_in_the_saved_adapter(start, rank, tmp_path):
    model = attach(small_llama(), "ba-lora", rank=4, alpha=6, rslora=True, **start)
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    assert layer.scaling["default"] == pytest.approx(6 / math.sqrt(4))
    export(model, tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["use_rslora"] and saved["r"] == rank
    assert saved["lora_alpha"] / math.sqrt(rank) == pytest.approx(6 / math.sqrt(4), rel=1e-12)


def test_the_numbers_of_layers_are_read_as_ranges():
    assert layers_of("0-3,7") == (0, 1, 2, 3, 7) and layers_of("2, 1") == (1, 2) and layers_of(None) is None
    assert targets_of(["q_proj", "layers.0.mlp"]) == ["q_proj", "layers.0.mlp"] and targets_of(["x.*"]) == "x.*"


BAD = [
    (["--target_modules", "(q|v"], "--target_modules '(q|v' is not a regular expression (missing ), unterminated"),
    (
        ["--target_modules", "all-linear", "q_proj"],
        "--target_modules all-linear is all linear layers, which stands alone",
    ),
    (["--target_modules", ".*q_proj", "v_proj"], "is a pattern, which stands alone"),
    (["--target_modules", ".*q_proj", "--layers", "0"], "which can name the layers itself; leave it out"),
    (["--layers", "3-1"], "--layers '3-1': '3-1' is not a layer or a range; write numbers from 0, as 0-3,7"),
    (["--layers", "x"], "is not a layer or a range"),
    (["--method", "full", "--layers", "0"], "--layers 0: method full adapts no layers by number; leave it out"),
    (["--method", "bitfit", "--layers", "0"], "method bitfit adapts no layers by number"),
    (["--method", "adalora", "--rslora"], "--rslora does not go with method adalora; use lora, pissa, ba-lora or dora"),
    (["--method", "loha", "--rslora"], "--rslora does not go with method loha"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_choices_end_in_one_line(words, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        parse(["--output_dir", "x", *words])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"target_modules": r".*self_attn.*"},
            "also matches 'model.layers.0.self_attn', a LlamaAttention; write it so",
        ),
        (
            {"target_modules": r"q_proj.*"},
            "--target_modules q_proj.* matches no linear layer; it has to match a whole name",
        ),
        ({"layers": (0, 2)}, "--layers: no target module is in layer 2 (layers of this model: 0 to 1); correct it"),
        (
            {"target_modules": ["q_proj", "lm_head"], "layers": (0,)},
            "target module 'lm_head' is in none of these layers",
        ),
        ({"target_modules": ATTENTION, "layers": (0,)}, "--layers does not go with the pattern"),
    ],
)
def test_choices_that_do_not_fit_the_model_end_in_one_line(choice, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        attach(small_llama(), "lora", rank=2, alpha=2, **choice)
    assert "\n" not in str(error.value)
