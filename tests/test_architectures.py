"""Every architecture of the paper, as a small random model of its real class with its quirks, goes the whole way with BA-LoRA."""

import copy
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DeepseekV2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
)

from ba_lora.adapters import attach, export, load, trained_parameters
from ba_lora.objective import Objective, counted, dense_objective
from ba_lora.objective_model import ObjectiveModel
from ba_lora.teacher import teacher
from ba_lora.trainer import BALoRATrainer
from tests.common import SMALL, collate, move, ragged_samples
from tests.test_trainer import arguments

RANK = 4
OBJECTIVE = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3, svd_norm="frobenius")
DOCUMENT = Path(__file__).parent.parent / "docs" / "architectures.md"

NUMBERS = SMALL | {"max_position_embeddings": 64, "initializer_range": 0.2}
GROUPED = NUMBERS | {"num_attention_heads": 4, "num_key_value_heads": 2}
TWO_EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 10.0}  # a loss of theirs would be seen
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SEVEN = (*ATTENTION, *MLP)


class Case(NamedTuple):
    """A small model. adapted: how often a layer of each name is; from_hidden: whether the objective needs no logits;
    left: the numbers in experts that are left as they are."""

    config: object
    adapted: dict[str, int]
    from_hidden: bool = True
    left: int = 0


def each(names, times=2) -> dict[str, int]:
    return dict.fromkeys(names, times)


CASES = {
    "LLaMA-2": Case(LlamaConfig(**NUMBERS | {"num_key_value_heads": 2}), each(SEVEN)),
    "LLaMA-3": Case(
        LlamaConfig(**GROUPED, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}), each(SEVEN)
    ),
    "Mistral": Case(MistralConfig(**GROUPED, sliding_window=4), each(SEVEN)),
    "Gemma": Case(GemmaConfig(**NUMBERS, head_dim=24, tie_word_embeddings=True), each(SEVEN)),
    "Gemma-2": Case(
        Gemma2Config(**NUMBERS, head_dim=24, sliding_window=4, final_logit_softcapping=3.0, attn_logit_softcapping=5.0),
        each(SEVEN),
        from_hidden=False,
    ),
    "Gemma-3": Case(Gemma3TextConfig(**NUMBERS, head_dim=24, sliding_window=4, tie_word_embeddings=True), each(SEVEN)),
    "Qwen1.5": Case(Qwen2Config(**NUMBERS | {"num_key_value_heads": 2}), each(SEVEN)),
    "Yi": Case(LlamaConfig(**GROUPED, rope_parameters={"rope_type": "default", "rope_theta": 5e6}), each(SEVEN)),
    "SmolLM2": Case(LlamaConfig(**GROUPED, tie_word_embeddings=True), each(SEVEN)),
    "GPT-2": Case(
        GPT2Config(
            vocab_size=SMALL["vocab_size"],
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=0.2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        {"c_attn": 2, "c_proj": 4, "c_fc": 2},
    ),
    "Mixtral": Case(
        MixtralConfig(**GROUPED, num_local_experts=4, **TWO_EXPERTS), each(ATTENTION), left=2 * 4 * 3 * 32 * 48
    ),
    "Qwen1.5-MoE": Case(
        Qwen2MoeConfig(
            **NUMBERS, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=24, **TWO_EXPERTS
        ),
        each(SEVEN),
        left=2 * 4 * 3 * 32 * 16,
    ),
    "DeepSeek-MoE (as DeepSeek-V2)": Case(
        DeepseekV2Config(
            **NUMBERS | {"num_key_value_heads": 2},
            q_lora_rank=None,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=16,
            head_dim=8,
            n_routed_experts=4,
            n_shared_experts=1,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
            topk_method="greedy",
            **TWO_EXPERTS,
        ),
        each(("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")),
        left=4 * 3 * 32 * 16,
    ),
    "Granite": Case(GraniteConfig(**NUMBERS, logits_scaling=8.0), each(SEVEN), from_hidden=False),
    "Command R": Case(CohereConfig(**NUMBERS, logit_scale=0.25), each(SEVEN), from_hidden=False),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param, CASES[request.param]


@pytest.fixture(scope="module")
def base(case):
    """The original model, which no test changes."""
    config = copy.deepcopy(case[1].config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


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
    said = [record.getMessage() for record in caplog.records if "experts" in record.getMessage()]
    assert len(said) == bool(expected.left)
    if expected.left:
        assert f"{expected.left:,} of the {sum(p.numel() for p in base.parameters()):,} parameters" in said[0]
    assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" not in n)  # no router, no head


def test_it_starts_as_the_original_and_its_teacher_stays_that(base, trained):
    equal(logits_of(adapt(base)), logits_of(base))
    model, _ = trained
    assert (logits_of(model) - logits_of(base)).abs().max() > 0.1
    with teacher(model):
        equal(logits_of(model), logits_of(base))


def test_the_objective_is_that_of_the_logits_in_float64(case, base, trained):
    model, rows = trained
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["consistency"] == pytest.approx(0, abs=1e-5) and rows[1]["consistency"] > 1e-6
    wrapped, inputs = ObjectiveModel(model, OBJECTIVE), batch()
    wrapped.begin_step(0, 1, 1, 1)
    wrapped.train()
    loss = wrapped(**inputs).loss
    wrapped.eval()
    assert bool(wrapped.parts) == case[1].from_hidden
    mask = counted(inputs["labels"])
    with torch.no_grad():
        student, original = (
            each(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1][mask].double()
            for each in (model, base)
        )
    truth, terms = dense_objective(
        student, original, inputs["labels"][:, 1:][mask], OBJECTIVE, (0.3, 0.2, 0.1), num_items=None, spectrum_scale=1.0
    )
    assert loss.item() == pytest.approx(truth.item(), rel=1e-4)
    for name in ("task", "consistency", "diversity", "spectrum"):
        assert wrapped.sums[name].item() == pytest.approx(terms[name].item(), rel=1e-3, abs=1e-5), name


def test_the_export_opens_on_the_original_base_and_folds_into_it(base, trained, tmp_path):
    model, _ = trained
    base.save_pretrained(tmp_path / "base")
    export(model, tmp_path / "adapter")
    equal(logits_of(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()), logits_of(model))
    equal(logits_of(load(tmp_path / "adapter", str(tmp_path / "base"))), logits_of(model))


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


def test_the_document_has_a_row_for_each_with_what_is_adapted():
    rows = [line.strip("| ").split(" | ") for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    known = [
        [name, case.config.model_type, " ".join(case.adapted), "hidden states" if case.from_hidden else "logits"]
        for name, case in CASES.items()
    ]
    assert [[row[0], row[1], row[3], row[4]] for row in rows[1:]] == known
