"""Every architecture of the paper, as a small random model of its real class and with its quirks, completes every step with
BA-LoRA."""

import copy
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CohereConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from ba_lora.data.collator import counted
from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export, load, trained_parameters
from ba_lora.methods.targets import left_out
from ba_lora.methods.teacher import teacher
from ba_lora.models import load_model
from ba_lora.objective.dense import dense_objective
from ba_lora.objective.settings import Objective
from ba_lora.training.model_numbers import read_numbers
from ba_lora.training.objective_model import ObjectiveModel
from ba_lora.training.trainer import BALoRATrainer
from tests.common import SMALL, collate, move, ragged_samples
from tests.training.test_trainer import arguments

RANK = 4
OBJECTIVE = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3, svd_norm="frobenius")
DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"

NUMBERS = SMALL | {"max_position_embeddings": 64, "initializer_range": 0.2}
GROUPED = NUMBERS | {"num_attention_heads": 4, "num_key_value_heads": 2}
WHOLE = NUMBERS | {"num_key_value_heads": 2}
LLAMA_3_1 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TWO_EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 10.0}  # a separate router loss would be noticed
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "head_dim": 8}
DEEPSEEK = LATENT | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SEVEN = (*ATTENTION, *MLP)


class Case(NamedTuple):
    """A small model. adapted: number of adapted layers by name; from_hidden: True if the objective needs no logits; left:
    count of numbers, by name, in the matrices left as they are."""

    config: object
    adapted: dict[str, int]
    from_hidden: bool = True
    left: dict[str, int] | None = None


def each(names, times=2) -> dict[str, int]:
    return dict.fromkeys(names, times)


def shrunk(name: str, **changes):
    """The model of configs/models with all its flags and a few small sizes."""
    numbers = dict(read_numbers(name)[0])
    return AutoConfig.for_model(numbers.pop("model_type"), **numbers | changes)


CASES = {
    "LLaMA-2": Case(shrunk("llama-2-7b", **WHOLE), each(SEVEN)),
    "LLaMA-3": Case(shrunk("llama-3-8b", **GROUPED), each(SEVEN)),
    "LLaMA-3.1": Case(
        LlamaConfig(**GROUPED, rope_parameters=LLAMA_3_1 | {"original_max_position_embeddings": 16}), each(SEVEN)
    ),
    "Mistral": Case(shrunk("mistral-7b", **GROUPED, sliding_window=4), each(SEVEN)),
    "Gemma": Case(shrunk("gemma-7b", **WHOLE, head_dim=24), each(SEVEN)),
    "Gemma-2": Case(
        Gemma2Config(**NUMBERS, head_dim=24, sliding_window=4, final_logit_softcapping=3.0, attn_logit_softcapping=0.5),
        each(SEVEN),
        from_hidden=False,
    ),
    "Gemma-3": Case(
        shrunk("gemma3-270m", **GROUPED, head_dim=24, query_pre_attn_scalar=24, sliding_window=4), each(SEVEN)
    ),
    "Qwen1.5": Case(shrunk("qwen1.5-7b", **WHOLE), each(SEVEN)),
    "Qwen1.5, small": Case(shrunk("qwen1.5-7b", **WHOLE | {"tie_word_embeddings": True}), each(SEVEN)),
    "Yi": Case(shrunk("yi-1.5-34b", **GROUPED), each(SEVEN)),
    "SmolLM2": Case(shrunk("smollm2-135m", **GROUPED), each(SEVEN)),
    "GPT-2": Case(
        shrunk(
            "gpt2-xl",
            **{name: SMALL[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
            **{"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2},
            **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        ),
        {"c_attn": 2, "c_proj": 4, "c_fc": 2},
    ),
    "Mixtral": Case(
        shrunk("mixtral-8x7b", **GROUPED | TWO_EXPERTS | {"num_local_experts": 4}),
        each(ATTENTION),
        left={"mlp.experts.gate_up_proj": 2 * 4 * 2 * 48 * 32, "mlp.experts.down_proj": 2 * 4 * 32 * 48},
    ),
    "Qwen1.5-MoE": Case(
        Qwen2MoeConfig(
            **NUMBERS, **TWO_EXPERTS, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=24
        ),
        each(SEVEN),
        left={
            "mlp.experts.gate_up_proj": 2 * 4 * 2 * 16 * 32,
            "mlp.experts.down_proj": 2 * 4 * 32 * 16,
            "mlp.shared_expert_gate": 2 * 32,
        },
    ),
    "DeepSeek-MoE (as DeepSeek-V2)": Case(
        DeepseekV2Config(**WHOLE | DEEPSEEK, q_lora_rank=None, topk_method="greedy"),
        each(("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")),
        left={
            "mlp.experts.gate_up_proj": 4 * 2 * 16 * 32,
            "mlp.experts.down_proj": 4 * 32 * 16,
            **each(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), 32 * 48),
            **each((f"mlp.shared_experts.{name}" for name in MLP), 32 * 16),
        },
    ),
    "Granite": Case(GraniteConfig(**NUMBERS, logits_scaling=8.0), each(SEVEN), from_hidden=False),
    "Command R": Case(CohereConfig(**NUMBERS, logit_scale=0.25), each(SEVEN), from_hidden=False),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param, CASES[request.param]


@pytest.fixture(scope="module")
def base(case):
    """The original model, which no test changes; its biases and norms are random too."""
    config = copy.deepcopy(case[1].config)
    attention = "eager" if case[0] == "Gemma-2" else None  # as load_model opens it
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        for parameter in model.requires_grad_(False).parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
        return model.eval()


def adapt(base):
    return attach(copy.deepcopy(base), "ba-lora", rank=RANK, alpha=RANK)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """(a model after two optimiser steps of the real trainer and a push, the lines of metrics.jsonl)"""
    folder = tmp_path_factory.mktemp("run")
    model, file = adapt(base), folder / "metrics.jsonl"
    options = arguments(folder, max_steps=2, logging_steps=1)
    data = {"train_dataset": ragged_samples(16), "data_collator": collate}
    BALoRATrainer(model, OBJECTIVE, options, metrics=file, **data).train()
    move(model)
    return model.eval(), [json.loads(line) for line in file.read_text().splitlines()]


def batch():
    return collate(ragged_samples(5, seed=1))


def logits_of(model):
    inputs = batch()
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return logits[inputs["attention_mask"].bool()]


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)


def test_what_is_adapted_and_what_is_left(case, base, caplog):
    _, expected = case
    with caplog.at_level("WARNING"):
        model = adapt(base)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    counts = {}
    for name in layers:
        counts[name.rpartition(".")[2]] = counts.get(name.rpartition(".")[2], 0) + 1
    assert counts == expected.adapted
    shapes = [base.get_submodule(name.removeprefix("base_model.model.")).weight.shape for name in layers]
    assert trained_parameters(model) == sum(RANK * (rows + columns) for rows, columns in shapes)
    assert left_out(model) == (expected.left or {})
    said = [record.getMessage() for record in caplog.records if record.name == "ba_lora.methods.attach"]
    assert len(said) == bool(expected.left)
    if expected.left:
        total = sum(parameter.numel() for parameter in base.parameters())
        assert said[0].endswith(f"{', '.join(expected.left)}, {sum(expected.left.values()):,} of {total:,} parameters")
    assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" not in n)  # no router, no head


def test_it_starts_as_the_original_and_its_teacher_stays_that(base, trained):
    equal(logits_of(adapt(base)), logits_of(base))
    model, _ = trained
    assert (logits_of(model) - logits_of(base)).abs().max() > 0.1
    with teacher(model):
        equal(logits_of(model), logits_of(base))


def test_the_objective_is_that_of_the_logits_in_float64(case, base, trained, monkeypatch):
    model, rows = trained
    monkeypatch.setattr(model.config, "output_router_logits", True, raising=False)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["consistency"] == pytest.approx(0, abs=1e-5) and rows[1]["consistency"] > 1e-6
    wrapped, inputs = ObjectiveModel(model, OBJECTIVE), batch()
    wrapped.begin_step(0, 1, 1, 1)
    wrapped.train()
    items = 2 * counted(inputs["labels"]).sum()  # as if a second micro-batch had the same number
    loss = wrapped(**inputs, num_items_in_batch=items).loss
    wrapped.eval()
    assert bool(wrapped.parts) == case[1].from_hidden
    mask = counted(inputs["labels"])
    with torch.no_grad():
        student, original = (
            each(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1][mask].double()
            for each in (model, base)
        )
    truth, terms = dense_objective(
        student, original, inputs["labels"][:, 1:][mask], OBJECTIVE, (0.3, 0.2, 0.1), num_items=items
    )
    assert loss.item() == pytest.approx(truth.item(), rel=1e-4)
    for name in ("task", "consistency", "diversity", "spectrum"):
        assert wrapped.sums[name].item() == pytest.approx(terms[name].item(), rel=1e-3, abs=1e-5), name


def test_the_export_opens_on_the_original_base_and_folds_into_it(base, trained, tmp_path):
    model, _ = trained
    base.save_pretrained(tmp_path / "base")
    export(model, tmp_path / "adapter")
    equal(logits_of(load(tmp_path / "adapter", str(tmp_path / "base"))), logits_of(model))
    stock = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    equal(logits_of(stock), logits_of(model))
    equal(logits_of(stock.merge_and_unload()), logits_of(model))


def test_the_two_attentions_agree_or_the_one_that_does_not_is_refused(case, base, trained, tmp_path):
    if case[0] == "Gemma-2":
        base.save_pretrained(tmp_path)
        assert load_model(str(tmp_path)).config._attn_implementation == "eager"
        with pytest.raises(UserError, match="sdpa leaves out the soft cap on the attention of this Gemma2ForCausalLM"):
            load_model(str(tmp_path), attn_implementation="sdpa")
        return
    model, _ = trained
    seen = {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        seen[attention] = logits_of(model)
    equal(seen["eager"], seen["sdpa"])


def test_it_generates_the_same_tokens_before_and_after_the_export(base, trained, tmp_path):
    model, _ = trained
    export(model, tmp_path)
    opened = load(tmp_path, copy.deepcopy(base))
    ids, mask = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    together = [
        each.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False) for each in (model, opened)
    ]
    alone = opened.generate(input_ids=ids[:1, 2:], max_new_tokens=6, do_sample=False)
    assert torch.equal(*together) and together[0].shape == (2, 10)
    assert torch.equal(together[0][:1, 4:], alone[:, 2:])  # padding on the left changes nothing


@pytest.mark.parametrize(
    "config",
    [
        Qwen3MoeConfig(**NUMBERS | TWO_EXPERTS, num_experts=4, moe_intermediate_size=16, head_dim=16),
        DeepseekV3Config(**WHOLE | DEEPSEEK, q_lora_rank=8),
    ],
    ids=lambda config: config.model_type,
)
def test_of_other_mixtures_neither_router_nor_experts_are_adapted(config):
    model = attach(AutoModelForCausalLM.from_config(config), "ba-lora", rank=RANK, alpha=RANK)
    adapted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert adapted and all(".self_attn." in name for name in adapted)
    assert not model.peft_config["default"].target_parameters  # PEFT's, for tensors that are no layer


def test_names_that_peft_takes_for_the_stacked_experts_are_refused():
    model = AutoModelForCausalLM.from_config(CASES["DeepSeek-MoE (as DeepSeek-V2)"].config)
    with pytest.raises(UserError, match="target module 'up_proj' of a DeepseekV2ForCausalLM is taken by PEFT"):
        attach(model, "lora", rank=RANK, alpha=RANK, target_modules=["q_proj", "up_proj"])


def test_the_document_has_a_row_for_each_with_what_is_adapted():
    rows = [line.strip("| ").split(" | ") for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    known = [
        [name, case.config.model_type, " ".join(case.adapted), "hidden states" if case.from_hidden else "logits"]
        for name, case in CASES.items()
    ]
    assert [[row[0], row[1], row[3], row[4]] for row in rows[1:]] == known
