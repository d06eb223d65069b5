"""Time per phase of a logged step, speed and memory: each phase is the right one, and no time is lost."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer

from ba_lora.objective.spectrum import leading_triplets
from ba_lora.provenance import PeakMemory
from ba_lora.training.callbacks import ObjectiveCallback
from ba_lora.training.gauges import PHASES, Gauges, StepClock
from ba_lora.training.objective_model import ObjectiveModel
from ba_lora.training.trainer import BALoRATrainer
from tests.common import collate, ragged_samples
from tests.objective.test_spectrum import with_values
from tests.training.test_trainer import ALL_ON, arguments, lines, run, student

TAKES = {
    "data": 1.0,
    "teacher": 2.0,
    "forward": 4.0,
    "backward": 8.0,
    "optimizer": 16.0,
}  # per micro-batch or per step


def phases(row):
    return {phase: row[f"seconds_{phase}"] for phase in PHASES}


def test_what_takes_time_shows_in_its_phase_and_in_no_other(tmp_path, monkeypatch):
    """Use a clock that advances only when a phase moves it."""
    now = [0.0]

    def take(phase):
        now[0] += TAKES[phase]

    monkeypatch.setattr("ba_lora.training.gauges.time", SimpleNamespace(perf_counter=lambda: now[0]))
    model = student()
    inner = model.get_base_model().model.layers[0]
    inner.register_forward_pre_hook(lambda *more: take("forward" if torch.is_grad_enabled() else "teacher"))
    next(p for p in model.parameters() if p.requires_grad).register_hook(lambda gradient: take("backward"))
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **o: (take("optimizer"), step(*a, **o))[1])
    trainer = BALoRATrainer(
        model,
        ALL_ON,
        arguments(tmp_path, max_steps=3, logging_steps=1),
        metrics=tmp_path / "metrics.jsonl",
        train_dataset=ragged_samples(12),
        data_collator=lambda samples: (take("data"), collate(samples))[1],
    )
    trainer.train()
    times = {phase: 1 if phase == "optimizer" else 2 for phase in PHASES}  # two micro-batches per step
    _, second, _ = lines(tmp_path)  # the first step also inspects the head, and the loader fetches one batch ahead
    assert phases(second) == {phase: times[phase] * TAKES[phase] for phase in PHASES}


def test_tokens_per_second_is_what_lies_between_two_lines(tmp_path):
    run(tmp_path)
    before = {"tokens": 0, "seconds": 0.0}
    for row in lines(tmp_path):
        tokens, seconds = row["tokens"] - before["tokens"], row["seconds"] - before["seconds"]
        assert row["tokens_per_second"] == pytest.approx(tokens / seconds, rel=1e-3)
        before = row


def test_a_continued_run_counts_from_the_line_before(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=4)
    whole = lines(tmp_path)
    kept = whole[:3]
    run(tmp_path, save_strategy="steps", save_steps=4, resume=str(tmp_path / "checkpoint-4"))
    again = lines(tmp_path)
    assert again[:3] == kept and again[3]["tokens"] == whole[3]["tokens"]
    between = (again[3]["tokens"] - kept[2]["tokens"]) / (again[3]["seconds"] - kept[2]["seconds"])
    assert again[3]["tokens_per_second"] == pytest.approx(between, rel=1e-3)


def test_steps_that_are_not_logged_are_not_measured(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(StepClock, "_now", lambda clock: waited.append(1) or time.perf_counter())
    run(tmp_path, max_steps=6, logging_steps=6, logging_first_step=False)
    assert [row["step"] for row in lines(tmp_path)] == [1, 6]
    laps = 1 + 2 * 4 + 1  # the beginning; data, teacher, forward, backward of two micro-batches; the optimiser
    assert len(waited) == 2 * laps


def test_a_run_on_the_cpu_leaves_a_gpu_alone(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # a call of torch.cuda would fail here
    gauges = Gauges(StepClock())
    gauges.start(torch.device("cpu"))
    gauges.clock.begin(logged=True)
    assert gauges.row(1.0, 2)["peak_memory"] is None


def test_failed_searches_for_the_leading_triplets_are_counted_between_two_lines():
    gauges = Gauges(StepClock())
    gauges.start(torch.device("cpu"))
    gauges.row(1.0, 0)  # forgets the searches of others
    flat, steep = torch.eye(400), with_values(1 / torch.arange(1.0, 321.0, dtype=torch.float64), 320, 400).float()
    for matrix in (flat, steep, steep, steep):
        leading_triplets(matrix, 10)
    assert gauges.row(2.0, 0)["spectrum_searches_failed"] == 0.25
    assert gauges.row(3.0, 0)["spectrum_searches_failed"] is None


def test_peak_memory_is_that_of_the_process_and_unknown_without_a_watch(tmp_path):
    model = ObjectiveModel(student(), ALL_ON)
    callback = ObjectiveCallback(model, tmp_path / "metrics.jsonl")
    trainer = Trainer(
        model, arguments(tmp_path), train_dataset=ragged_samples(24), data_collator=collate, callbacks=[callback]
    )
    trainer.train()
    rows = lines(tmp_path)
    assert rows[0]["peak_memory"] is None and all(value > 0 for value in phases(rows[-1]).values())
    with PeakMemory() as callback.gauges.memory:
        time.sleep(0.1)
        measured = callback.gauges.row(1e9, 1)["peak_memory"]
    assert 1e8 < measured <= callback.gauges.memory.peak
    assert json.dumps(rows)
