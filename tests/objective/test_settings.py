"""Which tokens count, how they are shifted, and the divisor of the mean; the way a batch is split does not matter."""

import numpy as np
import pytest
import torch

from ba_lora.data.collator import counted
from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.methods.teacher import teacher
from ba_lora.objective.dense import classifier_objective, dense_objective
from ba_lora.objective.settings import Objective
from ba_lora.training.objective_model import ObjectiveModel
from tests.common import VOCABULARY, collate, move, ragged_samples, small_llama

ALL_ON = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3, svd_norm="frobenius")
TOKEN_TERMS = Objective(0.3, 0.2, 0.0, temperature=2.0, top_k=5)


def wrapped(objective=ALL_ON, method="ba-lora", moved=True, **options):
    """An adapted random model, its factors moved away from the start so that every term has a gradient."""
    model = attach(small_llama(), method, rank=4, alpha=4, seed=1, keep_initial=True)
    if moved:
        move(model)
    return ObjectiveModel(model, objective, **options).train()


def gradients(model, batches, num_items=None):
    """Gradient of the whole step, cut into `batches`."""
    model.zero_grad()
    model.begin_step(0, 10, micro_batches=len(batches))
    for batch in batches:
        model(**batch, num_items_in_batch=num_items).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def rows_of(batches):
    return sum(int(counted(batch["labels"]).sum()) for batch in batches)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_terms_equal_a_loop_over_tokens_in_numpy():
    """An independent version of the whole objective: position by position, in float64."""
    model, batch = wrapped().eval(), collate(ragged_samples(3))
    model.double()
    with torch.no_grad():
        student = model.student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()
        with teacher(model.student):
            pretrained = model.student(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits.numpy()
        loss = model(**batch).loss.item()

    def log_softmax(z):
        return z - z.max() - np.log(np.exp(z - z.max()).sum())

    task = consistency = diversity = 0.0
    kept = []
    for row in range(3):
        for position in range(batch["labels"].shape[1] - 1):
            target = int(batch["labels"][row, position + 1])
            if target == -100:
                continue
            z, t = student[row, position], pretrained[row, position]
            task -= log_softmax(z)[target]
            p, q = log_softmax(t / 2), log_softmax(z / 2)
            consistency += 4 * (np.exp(p) * (p - q)).sum()
            top = log_softmax(np.sort(z)[-5:])
            diversity += (np.exp(top) * top).sum()
            kept.append(z)
    n, z = len(kept), np.stack(kept)
    spectrum = -np.linalg.svd(z, compute_uv=False)[:3].sum() / np.sqrt((z**2).sum())
    assert loss == pytest.approx((task + 0.3 * consistency + 0.2 * diversity) / n + 0.1 * spectrum, rel=1e-9)


def test_counted_rows_are_shifted_by_one():
    labels = torch.tensor([[-100, -100, 5, 6, 2, -100]])
    assert counted(labels).tolist() == [[False, True, True, True, False]]


def test_task_loss_equals_transformers_own():
    model, batch = wrapped(Objective()), collate(ragged_samples(5))
    assert model(**batch).loss.item() == pytest.approx(model.student(**batch).loss.item(), rel=1e-6)


def test_padding_and_prompt_do_not_count():
    samples = ragged_samples(4)
    model = wrapped().eval()
    alone = collate(samples)
    more_padding = {
        key: torch.nn.functional.pad(value, (0, 7), value={"labels": -100}.get(key, 0)) for key, value in alone.items()
    }
    assert model(**more_padding).loss.item() == pytest.approx(model(**alone).loss.item(), rel=1e-5)
    prompt_row = counted(alone["labels"]).sum(1)
    assert prompt_row.tolist() == [sum(label != -100 for label in sample["labels"]) for sample in samples]


@pytest.mark.parametrize("objective", [TOKEN_TERMS, Objective(0.3, 0.2, 0.0)], ids=["top-k", "whole vocabulary"])
def test_one_batch_of_8_and_four_ragged_micro_batches_of_2_have_the_same_gradient(objective):
    samples, model = ragged_samples(8), wrapped(objective)
    whole = [collate(samples)]
    cut = [collate(samples[start : start + 2]) for start in range(0, 8, 2)]
    counts = {rows_of([batch]) for batch in cut}
    assert len(counts) > 1  # ragged; otherwise the test could not fail
    n = torch.tensor(rows_of(whole))
    assert relative(gradients(model, cut, n), gradients(model, whole, n)) < 1e-5


def test_the_spectrums_gradient_is_the_mean_over_the_micro_batches():
    samples = ragged_samples(8)
    cut = [collate(samples[start : start + 2]) for start in range(0, 8, 2)]
    n = torch.tensor(rows_of(cut))
    with_spectrum, without = wrapped(ALL_ON), wrapped(TOKEN_TERMS)
    step = gradients(with_spectrum, cut, n) - gradients(without, cut, n)
    apart = [gradients(with_spectrum, [batch], n) - gradients(without, [batch], n) for batch in cut]
    assert relative(step, sum(apart) / 4) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["full", "lora", "pissa", "ba-lora"])
def test_consistency_is_exactly_zero_at_step_zero(method, dtype):
    model = wrapped(Objective(1.0, 0.0, 0.0, temperature=2.0), method, moved=False).to(dtype)
    model(**collate(ragged_samples(4)))
    assert model.sums["consistency"].item() == 0.0


def test_a_batch_without_rows_gives_zero_loss_and_zero_gradient():
    model, batch = wrapped(), collate(ragged_samples(2))
    batch["labels"][:] = -100
    assert gradients(model, [batch], torch.tensor(7)).abs().max() == 0
    assert model.sums["loss"].item() == 0.0


def test_a_micro_batch_without_rows_does_not_disturb_the_others():
    model, samples = wrapped(TOKEN_TERMS), ragged_samples(4)
    batch, empty = collate(samples[:2]), collate(samples[2:])
    empty["labels"][:] = -100
    n = torch.tensor(rows_of([batch]))
    assert relative(gradients(model, [batch, empty], n), gradients(model, [batch], n)) < 1e-6


def test_a_term_of_weight_zero_is_not_computed_unless_asked():
    batch = collate(ragged_samples(3))
    model = wrapped(Objective(0.0, 0.0, 0.1))
    model(**batch)
    assert set(model.sums) == {"task", "spectrum", "loss"}
    asked = wrapped(Objective(0.0, 0.0, 0.1), all_terms=True)
    asked(**batch)
    assert {"task", "consistency", "diversity", "spectrum"} <= set(asked.sums)
    assert asked.sums["loss"].item() == pytest.approx(model.sums["loss"].item(), rel=1e-6)


def test_loss_is_the_weighted_sum_of_the_recorded_terms():
    model = wrapped()
    model.begin_step(0, 10)
    model(**collate(ragged_samples(3)))
    s = {name: value.item() for name, value in model.sums.items()}
    expected = s["task"] + 0.3 * s["consistency"] + 0.2 * s["diversity"] + 0.1 * s["spectrum"]
    assert s["loss"] == pytest.approx(expected, rel=1e-5)


def test_adaptive_lambda1_follows_the_teachers_confidence():
    objective = Objective(1.0, lambda1_schedule="adaptive", lambda1_min=0.2, temperature=2.0)
    model, batch = wrapped(objective), collate(ragged_samples(4))
    model(**batch)
    with teacher(model.student):
        logits = model.student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    p = torch.softmax(logits[:, :-1][counted(batch["labels"])].double() / 2, -1)
    certain = 1 + (p * p.log()).sum(-1).mean().item() / np.log(VOCABULARY)
    assert model.sums["lambda1"].item() == pytest.approx(0.2 + 0.8 * certain, rel=1e-4)
    assert 0.2 < model.sums["lambda1"].item() < 1.0


def test_dense_objective_scales_the_terms_as_the_contract_says():
    logits, targets = torch.randn(6, 9, dtype=torch.float64), torch.randint(9, (6,))
    before = torch.randn(6, 9, dtype=torch.float64)
    one, terms_one = dense_objective(logits, before, targets, ALL_ON, (0.3, 0.2, 0.1))
    two, terms_two = dense_objective(
        logits, before, targets, ALL_ON, (0.3, 0.2, 0.1), num_items=12, spectrum_scale=0.25
    )
    for name in ("task", "consistency", "diversity"):
        assert terms_two[name].item() == pytest.approx(terms_one[name].item() / 2)
    assert terms_two["spectrum"].item() == terms_one["spectrum"].item()
    token_part = one - 0.1 * terms_one["spectrum"]
    assert two.item() == pytest.approx((token_part / 2 + 0.1 * 0.25 * terms_one["spectrum"]).item())


@pytest.mark.parametrize("compute", [dense_objective, classifier_objective])
@pytest.mark.parametrize("form", ["iclr", "paper-v5"])
def test_autocast_changes_no_value_and_no_gradient(compute, form):
    """Autocast would round the factors of covariance and spectrum to bfloat16."""
    objective = Objective.preset(form, "nlu" if compute is classifier_objective else "nlg", top_k=None, svd_k=3)
    generator = torch.Generator().manual_seed(0)
    logits, before = (torch.randn(12, 9, generator=generator) for _ in range(2))
    found = []
    for enabled in (False, True):
        z = logits.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = compute(z, before, torch.arange(12) % 9, objective, (0.3, 0.2, 0.1))
        loss.backward()
        found.append((loss, z.grad))
    assert found[0][0].item() == found[1][0].item() and torch.equal(found[0][1], found[1][1])


def test_the_heads_factor_is_made_before_the_first_step_also_where_the_spectrum_begins_later(monkeypatch):
    made = []
    monkeypatch.setattr("ba_lora.training.objective_model.cached_factor", lambda head: made.append(head) or None)
    late = Objective(0.1, 0.0, 0.1, svd_k=3, svd_norm="frobenius", lambda3_schedule="two_phase")
    model = wrapped(late)
    model.begin_step(0, 100)
    assert model.lambdas[2] == 0
    model(**collate(ragged_samples(2))).loss.backward()
    assert len(made) == 1


def test_gradient_checkpointing_gives_the_same_gradient():
    batch = [collate(ragged_samples(4))]
    plain, recomputing = wrapped(), wrapped()
    recomputing.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert relative(gradients(recomputing, batch), gradients(plain, batch)) < 1e-5


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="top_k 500 is above the vocabulary of 97"):
        wrapped(Objective(0.0, 0.1, top_k=500))
    with pytest.raises(UserError, match="keep_initial=True"):
        ObjectiveModel(attach(small_llama(), "full", rank=1, alpha=1), Objective(0.1))
