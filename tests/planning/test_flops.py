"""The counted operations match those that a counter sees in the real step, and those of published models."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ba_lora.methods.attach import attach
from ba_lora.objective.settings import Objective
from ba_lora.planning.flops import of_a_look, of_a_sample, work_of
from ba_lora.planning.shapes import build
from ba_lora.training.classifier_model import ClassifierModel
from ba_lora.training.objective_model import ObjectiveModel
from ba_lora.training.teacher_share import TeacherShare
from tests.common import classifier_batch, small_classifier, small_llama

BATCH, LENGTH, COUNTED = 3, 40, 9
OBJECTIVE = Objective(0.3, 0.2, 0.0, temperature=2.0, top_k=5)


def batch_of_tokens():
    ids = torch.randint(3, 97, (BATCH, LENGTH))
    labels = torch.where(torch.arange(LENGTH) < LENGTH - COUNTED, -100, ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def compared(method, objective, checkpointing=False, teacher_share=1.0, **options):
    """(operations that a counter sees in a micro-batch, operations by the formula)."""
    # the counter does not know the CPU's fused attention
    options = {"rank": 4, "alpha": 4, "keep_initial": True} | options
    model = attach(small_llama(attn_implementation="eager"), method, **options)
    form = {"checkpointing": checkpointing, "teacher_share": teacher_share}
    said = BATCH * of_a_sample(work_of(model), objective, LENGTH, COUNTED, **form)
    wrapped = ObjectiveModel(model, objective, teacher_share=TeacherShare(teacher_share, BATCH)).train()
    wrapped.lambdas = objective.maxima()
    if checkpointing:
        wrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = batch_of_tokens()
    wrapped(**batch).loss.backward()  # work done only once is already over
    with FlopCounterMode(display=False) as counter:
        wrapped(**batch).loss.backward()
    return counter.get_total_flops(), said


@pytest.mark.parametrize("objective", [Objective(), OBJECTIVE], ids=["task alone", "with the teacher"])
def test_full_fine_tuning_takes_exactly_the_operations_of_the_formula(objective):
    seen, said = compared("full", objective)
    assert seen == said


@pytest.mark.parametrize("objective", [Objective(), OBJECTIVE], ids=["task alone", "with the teacher"])
def test_an_adapter_saves_the_first_layers_input_gradient_on_top(objective):
    seen, said = compared("lora", objective)
    query, key = 32 * 32, 32 * 16
    assert said - seen == 2 * BATCH * LENGTH * (query + 2 * key + 3 * 4 * 32)  # base and A of q, k and v


@pytest.mark.parametrize("objective", [Objective(), OBJECTIVE], ids=["task alone", "with the teacher"])
def test_the_delta_form_multiplies_by_four_factors_and_its_teacher_by_none(objective):
    seen, said = compared("pissa", objective, start_form="delta")
    query, key = 32 * 32, 32 * 16
    assert said - seen == 2 * BATCH * LENGTH * (query + 2 * key + 3 * 2 * 4 * 32)  # base, ΔA and A0 of q, k and v


def test_checkpointing_recomputes_nearly_a_forward_pass():
    seen, said = compared("lora", OBJECTIVE, checkpointing=True)
    assert seen < said < 1.05 * seen


def test_the_spectrum_adds_its_two_products():
    with_it = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3)
    (seen_before, said_before), (seen_after, said_after) = compared("lora", OBJECTIVE), compared("lora", with_it)
    seen, said = seen_after - seen_before, said_after - said_before
    assert said == BATCH * COUNTED * 4 * 32 * 32
    assert said <= seen < 3 * said  # includes the decomposition's products, which do not grow with the model


def test_with_a_cache_no_teacher_runs():
    work = work_of(attach(small_llama(), "lora", rank=4, alpha=4))
    cached = of_a_sample(work, OBJECTIVE, LENGTH, COUNTED, checkpointing=False, cached=True)
    assert cached == of_a_sample(work, Objective(), LENGTH, COUNTED, checkpointing=False)


def test_a_share_of_the_teacher_takes_exactly_that_share_of_its_operations():
    """One of three samples of the same length."""
    whole, none = (compared("full", form)[0] for form in (OBJECTIVE, replace(OBJECTIVE, lambda1=0.0)))
    seen, said = compared("full", OBJECTIVE, teacher_share=1 / 3)
    assert seen == pytest.approx(said, rel=1e-12) and seen - none == pytest.approx((whole - none) / 3, rel=1e-12)
    assert compared("lora", OBJECTIVE, teacher_share=1 / 3)[0] < compared("lora", OBJECTIVE)[0]


@pytest.mark.parametrize("objective", [Objective(), OBJECTIVE], ids=["task alone", "with the teacher"])
@pytest.mark.parametrize("method", ["full", "lora", "delta"])
def test_a_look_at_held_out_rows_takes_exactly_the_operations_of_the_formula(method, objective):
    form = {"start_form": "delta"} if method == "delta" else {}
    model = small_llama(attn_implementation="eager")
    model = attach(model, "pissa" if form else method, rank=4, alpha=4, keep_initial=True, **form)
    wrapped, batch = ObjectiveModel(model, objective, teacher_share=TeacherShare(0.5, 2)), batch_of_tokens()
    with wrapped.measuring():
        wrapped.measure(**batch)  # tries the head once
        with FlopCounterMode(display=False) as counter:
            wrapped.measure(**batch)
    assert counter.get_total_flops() == BATCH * of_a_look(work_of(model), objective, LENGTH, COUNTED)


def test_a_token_meets_the_published_number_of_weights():
    """LLaMA-2-7B: everything except embedding, head and norms. Mixtral-8x7B: 12.9 B active, two of eight experts."""
    for name, active in (("llama-2-7b", 6_738_415_616), ("mixtral-8x7b", 12.88e9)):
        work = work_of(build(name, "bfloat16").requires_grad_(False))
        assert work.frozen + 2 * 32_000 * 4096 + 65 * 4096 == pytest.approx(active, rel=1e-4)
        assert (work.trained, work.vocabulary, work.width) == (0, 32_000, 4096)
        assert work.attention == 32 * 4096


CLASSIFIERS = ("bert-large", "roberta-large", "deberta-v3-base", "gpt2-xl")
CLASSIFICATION = Objective(0.3, 0.2, 0.1, diversity="covariance", svd_k=2)
SPAN = 8


def compared_classifier(name, method, objective=CLASSIFICATION, checkpointing=False, layers=2):
    """(operations that a counter sees in a micro-batch, operations by the formula)."""
    changes = {"position_buckets": SPAN} if name.startswith("deberta") else {}
    model = small_classifier(name, num_hidden_layers=layers, attn_implementation="eager", **changes)
    model = attach(model, method, rank=4, alpha=4, keep_initial=objective.lambda1 > 0, total_steps=10)
    said = BATCH * of_a_sample(work_of(model), objective, LENGTH, 0, checkpointing=checkpointing)
    wrapped = ClassifierModel(model, objective).train()
    wrapped.lambdas = objective.maxima()
    if checkpointing:
        wrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = classifier_batch(BATCH, LENGTH)
    with FlopCounterMode(display=False) as counter:
        wrapped(**batch).loss.backward()
    return counter.get_total_flops(), said


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_all_that_full_fine_tuning_of_a_classifier_takes_beside_the_formula_is_its_head_and_its_positions(name):
    seen, said = compared_classifier(name, "full", Objective())
    pooler, outputs = 32 * 32, 32 * 3
    beside = {"gpt2-xl": BATCH * LENGTH * outputs}.get(
        name, BATCH * (pooler + outputs)
    )  # GPT-2's head sees every token
    if name == "deberta-v3-base":
        beside += 2 * 2 * SPAN * 2 * 32 * 32  # in 2 layers the positions pass through the query and key matrices
    assert seen - said == 3 * 2 * beside


# The counter sees less, by the gradient that ends in the first layer (for Houlsby's bottlenecks, above its attention), and more, by
# DeBERTa's positions and the work of DoRA and LoHa once per micro-batch, which is large in a real run.
@pytest.mark.parametrize("method", ["bitfit", "houlsby", "lora", "loha", "dora", "adalora"])
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each == "deberta-v3-base" else pytest.mark.slow) for each in CLASSIFIERS]
)
def test_every_method_takes_the_operations_of_the_formula_but_for_its_ends(name, method):
    seen, said = compared_classifier(name, method, layers=6)
    assert seen == pytest.approx(said, rel=0.07)


@pytest.mark.parametrize("name", ["bert-large", "gpt2-xl"])
def test_checkpointing_a_classifier_recomputes_nearly_a_forward_pass(name):
    (seen_before, said_before), (seen, said) = (
        compared_classifier(name, "lora", layers=6, checkpointing=each) for each in (False, True)
    )
    assert said / said_before == pytest.approx(seen / seen_before, rel=0.03) and said > 1.2 * said_before
