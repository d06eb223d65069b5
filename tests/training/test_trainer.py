"""The trainer: its steps, what it logs, how it stops and resumes; and a stock Trainer with our objective."""

import json
import random

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from safetensors.torch import load_file
from torch.utils.data import BatchSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from ba_lora.data.pairs import PadPairs
from ba_lora.errors import UserError
from ba_lora.methods.adalora import effective_ranks, start_rank
from ba_lora.methods.attach import attach
from ba_lora.objective.settings import Objective
from ba_lora.training.callbacks import NonFiniteLoss, ObjectiveCallback, micro_batches_of
from ba_lora.training.classifier_model import ClassifierModel
from ba_lora.training.gauges import PHASES
from ba_lora.training.objective_model import ObjectiveModel
from ba_lora.training.order import FixedOrder
from ba_lora.training.trainer import BALoRATrainer
from tests.common import TokenIds, collate, ragged_samples, small_llama
from tests.training.test_classifier_model import small_bert

ALL_ON = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3)


def arguments(folder, **changes):
    options = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": 1,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**options | changes)


def student(method="ba-lora"):
    return attach(small_llama(), method, rank=4, alpha=4, keep_initial=True)


def trained(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def run(folder, objective=ALL_ON, samples=24, model=None, resume=None, callbacks=(), metrics=True, **changes):
    model = model or student()
    trainer = BALoRATrainer(
        model,
        objective,
        arguments(folder, **changes),
        metrics=folder / "metrics.jsonl" if metrics else None,
        train_dataset=ragged_samples(samples),
        data_collator=collate,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trained(model)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def by_hand(objective, samples, steps, accumulation, learning_rate):
    """The same training without Trainer: Adam on the objective, with each step's batch in one piece."""
    model = student()
    wrapped = ObjectiveModel(model, objective).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    order = FixedOrder(len(samples), 1).order(0)
    for step in range(steps):
        wrapped.begin_step(step, steps)
        size = 2 * accumulation
        wrapped(**collate([samples[i] for i in order[step * size : (step + 1) * size]])).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()
    return trained(model)


def test_trainer_takes_the_steps_that_a_plain_loop_takes(tmp_path):
    """With accumulation: token means are over the step, and nothing is divided or multiplied twice."""
    objective = Objective(0.3, 0.2, 0.0, temperature=2.0, top_k=5, lambda1_schedule="cosine")
    ours = run(tmp_path, objective, lr_scheduler_type="constant")
    loop = by_hand(objective, ragged_samples(24), 6, 2, 1e-3)
    start = trained(student())
    assert ((ours - loop).norm() / (loop - start).norm()).item() < 1e-3


def test_logged_loss_is_the_weighted_sum_of_the_logged_terms(tmp_path):
    run(tmp_path)
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 4, 6]
    for row in rows:
        parts = [row[f"lambda{i}"] * row[name] for i, name in enumerate(("consistency", "diversity", "spectrum"), 1)]
        assert row["loss"] == pytest.approx(row["task"] + sum(parts), rel=1e-5)
    assert set(rows[0]) == {
        *("step", "loss", "task", "consistency", "diversity", "spectrum", "lambda1", "lambda2", "lambda3"),
        *("lr", "seconds", "tokens", "tokens_per_second", "peak_memory", "spectrum_searches_failed"),
        *(f"seconds_{phase}" for phase in PHASES),
    }


def test_a_term_of_weight_zero_is_logged_as_null(tmp_path):
    run(tmp_path, Objective(0.0, 0.2, 0.0))
    assert lines(tmp_path)[-1]["consistency"] is None and lines(tmp_path)[-1]["spectrum"] is None
    assert lines(tmp_path)[-1]["diversity"] < 0


def test_tokens_count_the_trained_rows(tmp_path):
    samples = ragged_samples(24)
    run(tmp_path)
    assert lines(tmp_path)[-1]["tokens"] == sum(label != -100 for s in samples for label in s["labels"])


def test_gradient_ratios_are_those_of_separate_backward_passes(tmp_path):
    model, samples = student(), ragged_samples(4)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.mul_(1.1)

    def norm(objective):
        wrapped = ObjectiveModel(model, objective, all_terms=True).train()
        wrapped.zero_grad()
        wrapped(**collate(samples)).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    plain = norm(Objective(svd_k=3, top_k=5))
    expected = (norm(Objective(0.0, 1.0, 0.0, svd_k=3, top_k=5)) - plain).norm() / plain.norm()
    trainer = BALoRATrainer(
        model,
        ALL_ON,
        arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=1, logging_steps=1),
        metrics=tmp_path / "metrics.jsonl",
        gradient_norms=True,
        train_dataset=samples,
        data_collator=collate,
    )
    trainer.train()
    row = lines(tmp_path)[0]
    assert row["gradient_ratio_diversity"] == pytest.approx(expected.item(), rel=1e-3)
    assert row["gradient_norm_task"] == pytest.approx(plain.norm().item(), rel=1e-4)


def test_a_non_finite_loss_stops_the_run_with_term_and_step(tmp_path):
    model = student()

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, **objects):
            if state.global_step == 2:
                with torch.no_grad():
                    next(p for n, p in model.named_parameters() if "lora_A" in n and p.requires_grad).fill_(
                        float("nan")
                    )

    with pytest.raises(NonFiniteLoss, match="the task term is nan at step 3"):
        run(tmp_path, model=model, callbacks=[Poison()])


def test_adaloras_penalty_is_in_the_loss_and_its_ranks_fall_under_the_trainer(tmp_path):
    model = attach(small_llama(), "adalora", rank=4, alpha=4, total_steps=20)
    run(tmp_path, objective=Objective(0.3), model=model, max_steps=20, logging_steps=1, learning_rate=0.02)
    for row in lines(tmp_path):
        assert row["penalty"] > 0
        assert row["loss"] == pytest.approx(row["task"] + 0.3 * row["consistency"] + row["penalty"], rel=1e-5)
    ranks = [sum(kept) for kept in effective_ranks(model).values()]
    assert sum(ranks) / len(ranks) == pytest.approx(4, abs=0.5) and start_rank(4) > 4


def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches():
    assert [micro_batches_of(step, range(7), 3) for step in range(6)] == [3, 3, 1, 3, 3, 1]
    assert [micro_batches_of(step, range(6), 3) for step in range(4)] == [3, 3, 3, 3]
    assert micro_batches_of(0, iter(()), 5) == 5


def test_the_order_of_the_samples_depends_on_seed_and_epoch_only():
    assert FixedOrder(50, 3).order(0) == FixedOrder(50, 3).order(0) != FixedOrder(50, 3).order(1)
    assert FixedOrder(50, 3).order(0) != FixedOrder(50, 4).order(0)
    assert sorted(FixedOrder(50, 3).order(7)) == list(range(50))


def padding(order, lengths, micro):
    batches = [[lengths[i] for i in order[start : start + micro]] for start in range(0, len(order), micro)]
    return sum(max(batch) * len(batch) - sum(batch) for batch in batches) / sum(lengths)


@pytest.mark.parametrize("count", [4096, 4001])
def test_grouping_by_length_cuts_the_padding_and_keeps_every_sample_once(count):
    chance = random.Random(0)
    lengths = [int(chance.lognormvariate(5, 0.6)) + 1 for _ in range(count)]
    order = FixedOrder(count, 3, lengths, micro_batch_size=4, effective_batch_size=8)
    assert sorted(order.order(0)) == list(range(count))
    assert order.order(0) == FixedOrder(count, 3, lengths, 4, 8).order(0) != order.order(1)
    plain = FixedOrder(count, 3).order(0)
    assert padding(plain, lengths, 4) > 0.4 and padding(order.order(0), lengths, 4) < 0.05
    blocks = [set(order.order(0)[start : start + 400]) for start in range(0, count, 400)]
    assert blocks == [
        set(plain[start : start + 400]) for start in range(0, count, 400)
    ]  # the same data at the same time
    firsts = [lengths[i] for i in order.order(0)[:400:4]]
    assert firsts != sorted(firsts)  # long and short micro-batches alternate


def test_grouped_micro_batches_are_the_same_for_one_process_and_for_two(tmp_path):
    """Two processes take turns at the micro-batches of the same order."""
    samples = ragged_samples(42)
    order = FixedOrder(len(samples), 1, [len(sample["input_ids"]) for sample in samples], 2, 4)
    options = {"train_dataset": samples, "data_collator": collate, "order": order}
    trainer = BALoRATrainer(student("lora"), Objective(), arguments(tmp_path), **options)
    seen = [batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()]
    pairs = [order.order(0)[at : at + 2] for at in range(0, 42, 2)]
    assert seen == [collate([samples[i] for i in pair])["input_ids"].tolist() for pair in pairs]
    shards = [list(BatchSamplerShard(BatchSampler(order, 2, False), 2, rank)) for rank in range(2)]
    assert [pair for both in zip(*shards, strict=True) for pair in both][:21] == pairs


def test_every_method_sees_the_samples_in_the_same_order(tmp_path):
    seen = {}
    for method in ("lora", "pissa", "ba-lora", "full"):
        log = seen.setdefault(method, [])

        def spy(samples, log=log):
            log.append([sample["input_ids"] for sample in samples])
            return collate(samples)

        trainer = BALoRATrainer(
            student(method),
            ALL_ON if method == "ba-lora" else Objective(),
            arguments(tmp_path),
            train_dataset=ragged_samples(24),
            data_collator=spy,
        )
        trainer.train()
    assert seen["lora"] == seen["pissa"] == seen["ba-lora"] == seen["full"]
    assert [ids for batch in seen["lora"] for ids in batch][:4] == [
        ragged_samples(24)[i]["input_ids"] for i in FixedOrder(24, 1).order(0)[:4]
    ]


RESUMED = {
    "ba-lora": {},
    "lora": {"dropout": 0.1},
    "full": {},
    "dora": {},
    "adalora": {"total_steps": 6},  # its ranks fall in steps 1 to 3
    "pfeiffer": {},
}


@pytest.mark.parametrize(("method", "at"), [*((method, 4) for method in RESUMED), ("adalora", 2)])
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, method, at):
    def fresh():
        return attach(small_llama(), method, rank=4, alpha=4, keep_initial=True, **RESUMED[method])

    whole = run(tmp_path / "whole", model=fresh())
    options = {"save_strategy": "steps", "save_steps": at}
    run(tmp_path / "cut", model=fresh(), **options)
    saved = tmp_path / "cut" / f"checkpoint-{at}"
    assert (saved / "trained.safetensors").exists() and not (saved / "model.safetensors").exists()
    resumed = run(tmp_path / "cut", model=fresh(), resume=str(saved), **options)
    assert torch.equal(resumed, whole)
    assert [row["step"] for row in lines(tmp_path / "cut")] == [1, 2, 4, 6]
    keep = ("step", "loss", "task", "consistency", "diversity", "spectrum", "lr", "tokens")
    assert [[row[k] for k in keep] for row in lines(tmp_path / "cut")] == [
        [row[k] for k in keep] for row in lines(tmp_path / "whole")
    ]


def test_a_resumed_classifier_ends_as_the_uninterrupted_one(tmp_path):
    def train(folder, resume=None):
        model = attach(small_bert(dropout=0.1), "ba-lora", rank=4, alpha=4, keep_initial=True)
        trainer = BALoRATrainer(
            model,
            Objective.preset("iclr", "nlu", svd_k=1),
            arguments(folder, save_strategy="steps", save_steps=4),
            train_dataset=[sample | {"labels": sample["input_ids"][1] % 3} for sample in ragged_samples(24)],
            data_collator=PadPairs(TokenIds()),
            wrapper=ClassifierModel,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trained(model)

    whole = train(tmp_path)
    assert torch.equal(train(tmp_path, str(tmp_path / "checkpoint-4")), whole)
    assert any("classifier" in name for name in load_file(tmp_path / "start.safetensors"))


def test_a_run_resumed_after_its_last_step_takes_no_more(tmp_path):
    """24 samples make 6 steps of 4: the run ends within an epoch."""
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4, "lr_scheduler_type": "constant"}
    whole = run(tmp_path, **options)
    assert torch.equal(run(tmp_path, resume=str(tmp_path / "checkpoint-4"), **options), whole)
    with pytest.raises(UserError, match=r"trained\.safetensors belongs to another model or method"):
        run(tmp_path, model=student("full"), resume=str(tmp_path / "checkpoint-4"), **options)


def test_a_stock_trainer_with_our_objective_ends_where_ours_does(tmp_path):
    """Same order and same accumulation: one epoch of 11 samples, so the last step is short."""

    class Ordered(Trainer):
        def _get_train_sampler(self, *arguments):
            return FixedOrder(len(self.train_dataset), 1)

    options = {"max_steps": -1, "num_train_epochs": 2}
    ours = run(tmp_path, samples=11, **options)
    model = student()
    wrapped = ObjectiveModel(model, ALL_ON)
    stock = Ordered(
        wrapped,
        arguments(tmp_path, **options),
        train_dataset=ragged_samples(11),
        data_collator=collate,
        callbacks=[ObjectiveCallback(wrapped)],
    )
    stock.train()
    assert torch.equal(trained(model), ours)


def test_one_process_that_sees_several_gpus_uses_one(tmp_path, caplog):
    """nn.DataParallel would lose the teacher and the terms. Two GPUs are pretended."""
    seeing = arguments(tmp_path)
    assert seeing.n_gpu < 2
    seeing._n_gpu = 2
    made = BALoRATrainer(student(), ALL_ON, seeing, train_dataset=ragged_samples(12), data_collator=collate)
    assert seeing.n_gpu == 1 and seeing.train_batch_size == 2 and isinstance(made.model, ObjectiveModel)
    assert "1 of 2 GPUs is used" in caplog.text


def test_a_stock_trainer_on_several_gpus_in_one_process_is_refused(tmp_path):
    seeing = arguments(tmp_path)
    seeing._n_gpu = 2
    wrapped = ObjectiveModel(student(), ALL_ON)
    stock = Trainer(wrapped, seeing, train_dataset=ragged_samples(12), data_collator=collate)
    stock.add_callback(ObjectiveCallback(wrapped))
    with pytest.raises(UserError, match="2 GPUs through nn.DataParallel.*torchrun"):
        stock.train()


def test_the_spectrum_of_a_short_last_step_is_averaged_over_its_own_micro_batches(tmp_path):
    scales = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **objects):
            scales.append(model.share)

    run(tmp_path, samples=10, callbacks=[Watch()], max_steps=-1, num_train_epochs=1)
    assert scales == [1 / 2, 1 / 2, 1.0]


def test_gradient_checkpointing_gives_the_same_run_with_the_teacher_inside(tmp_path):
    rows = {}
    for recompute in (False, True):
        options = {"gradient_checkpointing": recompute, "max_steps": 3, "logging_steps": 1}
        if recompute:
            options["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
        model = student()
        run(tmp_path / str(recompute), model=model, **options)
        lines = (tmp_path / str(recompute) / "metrics.jsonl").read_text().splitlines()
        rows[recompute] = (
            [[json.loads(line)[term] for term in ("loss", "task", "consistency")] for line in lines],
            model,
        )
        assert model.base_model.model.model.gradient_checkpointing is recompute
    torch.testing.assert_close(rows[True][0], rows[False][0], rtol=1e-5, atol=1e-7)
    assert rows[True][0][2][2] > 0  # the student has moved away from the teacher
    torch.testing.assert_close(trained(rows[True][1]), trained(rows[False][1]), rtol=1e-5, atol=1e-7)
