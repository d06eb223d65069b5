"""The mixin in front of a plain transformers.Trainer: its loss is the equation's, it changes nothing else, and it refuses what it cannot do."""

import copy
import math

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import ba_lora
from ba_lora.errors import UserError
from ba_lora.methods.teacher import initial_copy
from ba_lora.objective.settings import Objective
from tests.common import collate, move, ragged_samples, small_llama
from tests.trl.trainers import gradient, plain, relative, trained, with_adapter

BOTH = [collate(ragged_samples(8)[:5]), collate(ragged_samples(8)[5:])]


def by_hand(model, base, batches, weight, temperature):
    """(loss, gradient of the adapter) of cross-entropy + weight·T²·KL(base ‖ model), from logits."""
    items, loss = sum((b["labels"][:, 1:] != -100).sum() for b in batches), 0.0
    for batch in batches:
        keep = batch["labels"][:, 1:] != -100
        z = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1][keep]
        with torch.no_grad():
            t = base(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1][keep]
        log_p, log_q = (torch.log_softmax(x / temperature, -1) for x in (t, z))
        kl = temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
        loss = loss + (cross_entropy(z, batch["labels"][:, 1:][keep], reduction="sum") + weight * kl) / items
    adapter = [p for p in model.parameters() if p.requires_grad]
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, adapter)])


@pytest.mark.parametrize("init", [True, "pissa"])
def test_the_gradient_is_that_of_the_equation_with_the_original_base(init, tmp_path):
    base = small_llama().double()
    model = with_adapter(copy.deepcopy(base).float(), init_lora_weights=init).double()
    trainer = plain(tmp_path, model, options={"weight": 0.25, "temperature": 2.0})
    assert (initial_copy(model) is None) == (init is True)
    move(model)
    wanted_loss, wanted = by_hand(copy.deepcopy(model), base, BOTH, 0.25, 2.0)
    found = gradient(trainer, BOTH)
    assert relative(found, wanted) < (1e-9 if init is True else 1e-5)  # PiSSA's start is rounded to float32
    assert trainer.objective_model.sums["loss"].item() == pytest.approx(wanted_loss.item(), rel=1e-6)
    assert trainer.objective_model.parts is not None  # from the hidden states


def test_it_trains_logs_every_term_and_evaluates_without_logits(tmp_path):
    options = {"weight": 0.3, "temperature": 2.0, "diversity": 0.01, "spectrum": 0.02}
    trainer = plain(
        tmp_path, with_adapter(), evaluated=ragged_samples(5, 1), options=options, max_steps=4, logging_steps=2
    )
    heads, (head,) = [], (m for n, m in trainer.model.named_modules() if n.endswith("lm_head"))
    trainer.train()
    head.register_forward_hook(lambda module, args, output: heads.append(output.shape))
    first, second = (row for row in trainer.state.log_history if "loss" in row)
    found = trainer.evaluate()
    assert not heads, "the logits were made"
    assert first["consistency"] < second["consistency"]
    for row, prefix in ((first, ""), (second, ""), (found, "eval_")):
        total = row[f"{prefix}task"] + 0.3 * row[f"{prefix}consistency"]
        total += 0.01 * row[f"{prefix}diversity"] + 0.02 * row[f"{prefix}spectrum"]
        assert row[f"{prefix}loss"] == pytest.approx(total, rel=1e-5)
    assert "eval_entropy" not in found  # TRL's name, which a plain Trainer does not report


def test_any_other_call_of_the_model_and_the_saved_adapter_are_unchanged(tmp_path):
    model, batch = with_adapter(), BOTH[0]
    before = copy.deepcopy(model)(**batch)
    trainer = plain(tmp_path, model)
    after = trainer.model.eval()(**batch)
    assert torch.equal(after.logits, before.logits) and torch.equal(after.loss, before.loss)
    other = copy.deepcopy(trainer.model)
    move(trainer.model)
    assert torch.equal(other(**batch).logits, before.logits)  # a copy is a model of its own
    trainer.save_model(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_checkpoint_goes_on_where_it_was_written(tmp_path):
    whole = plain(tmp_path / "a", with_adapter(), max_steps=4, save_strategy="steps", save_steps=2)
    whole.train()
    again = plain(tmp_path / "b", with_adapter(), max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    torch.testing.assert_close(trained(again.model), trained(whole.model), rtol=1e-6, atol=1e-9)


class Largest(TorchDispatchMode):
    """The number of values of the largest tensor that any operation makes."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, torch.Tensor):
                self.values = max(self.values, each.numel())
        return made


@pytest.mark.slow
def test_no_tensor_of_the_rows_times_the_vocabulary_is_made(tmp_path):
    vocabulary, ids = 32_000, torch.randint(3, 32_000, (4, 115), generator=torch.Generator().manual_seed(0))
    model = with_adapter(small_llama(vocab_size=vocabulary, hidden_size=8, num_hidden_layers=1))
    trainer = plain(tmp_path, model, options={"diversity": 0.01, "spectrum": 0.01})
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    rows = 4 * 114
    with Largest() as largest:
        gradient(trainer, [batch])
        with torch.no_grad():
            trainer.compute_loss(trainer.model.eval(), dict(batch))
    assert 8 * vocabulary <= largest.values < rows * vocabulary
    with Largest() as dense:
        model(**batch)
    assert dense.values == 4 * 115 * vocabulary


def virtual_tokens():
    return get_peft_model(small_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


WRONG = {
    "the model is a LlamaForCausalLM, which has no adapter": (small_llama, {}, {}),
    "virtual tokens": (virtual_tokens, {}, {}),
    "anchor 'kll' is not known, did you mean 'kl'": (with_adapter, {"anchor": "kll"}, {}),
    "weight must be a number of at least 0, got -1": (with_adapter, {"weight": -1}, {}),
    "spectrum must be a number of at least 0, got nan": (with_adapter, {"spectrum": math.nan}, {}),
    "temperature must be positive and finite, got 0": (with_adapter, {"temperature": 0}, {}),
    "objective replaces anchor": (with_adapter, {"objective": Objective(0.1), "weight": 0.2}, {}),
    "label_smoothing_factor 0.1 changes the task loss": (with_adapter, {}, {"label_smoothing_factor": 0.1}),
    "compute_loss_func replaces the loss": (with_adapter, {"compute_loss_func": lambda *a, **k: 0}, {}),
}


@pytest.mark.parametrize("line", WRONG)
def test_what_cannot_work_is_refused_in_one_line(line, tmp_path):
    model, options, changes = WRONG[line]
    with pytest.raises(UserError, match=line) as caught:
        plain(tmp_path, model(), options=options, **changes)
    assert "\n" not in str(caught.value)


def test_a_whole_objective_with_schedules_goes_in_place_of_the_options(tmp_path):
    objective = Objective.preset("iclr", lambda1_schedule="linear_warmup")
    trainer = plain(tmp_path, with_adapter(), options={"objective": objective}, max_steps=3)
    seen = []
    begin = trainer.objective_model.begin_step
    trainer.objective_model.begin_step = lambda *a, **k: (begin(*a, **k), seen.append(trainer.objective_model.lambdas))
    trainer.train()
    assert seen == [objective.weights(step, 3) for step in range(3)]


@pytest.mark.parametrize("form", ["residual", "delta"])
def test_a_pissa_start_from_attach_is_anchored_at_the_base_and_exports_for_it(form, tmp_path, caplog):
    base, batch = small_llama(), BOTH[0]
    model = ba_lora.attach(copy.deepcopy(base), "pissa", rank=4, alpha=4, start_form=form)
    trainer = plain(tmp_path, model, options={"weight": 0.5}, learning_rate=0.01)
    assert "ba_lora.export" in caplog.text
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[0]["consistency"] == 0.0 < rows[1]["consistency"]
    with ba_lora.teacher(model):
        torch.testing.assert_close(model(**batch).logits, base(**batch).logits, rtol=1e-4, atol=1e-4)
    ba_lora.export(model, tmp_path / "adapter")
    opened = ba_lora.load(tmp_path / "adapter", copy.deepcopy(base))
    torch.testing.assert_close(opened(**batch).logits, model.eval()(**batch).logits, rtol=1e-4, atol=1e-4)


def test_peft_own_pissa_start_exports_for_the_original_base(tmp_path):
    base, batch = small_llama(), BOTH[0]
    model = with_adapter(copy.deepcopy(base), init_lora_weights="pissa")
    plain(tmp_path, model, learning_rate=0.01).train()
    ba_lora.export(model, tmp_path / "adapter")
    opened = ba_lora.load(tmp_path / "adapter", copy.deepcopy(base))
    torch.testing.assert_close(opened(**batch).logits, model.eval()(**batch).logits, rtol=1e-4, atol=1e-4)
