"""Where a logged step's time goes, its speed and its memory: the phases are the right ones, and lose nothing."""

import json
import time

import pytest
import torch
from transformers import Trainer, TrainerCallback

from ba_lora.gauges import PHASES
from ba_lora.objective_model import ObjectiveModel
from ba_lora.provenance import PeakMemory
from ba_lora.trainer import BALoRATrainer, ObjectiveCallback
from tests.common import collate, ragged_samples
from tests.test_trainer import ALL_ON, arguments, lines, run, student

PAUSE = 0.1


class Wall(TrainerCallback):
    """Seconds from the beginning of every step to its end."""

    def __init__(self):
        self.seconds = {}

    def on_step_begin(self, args, state, control, **objects):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **objects):
        self.seconds[state.global_step] = time.perf_counter() - self.started


def phases(row):
    return {phase: row[f"seconds_{phase}"] for phase in PHASES}


def test_the_phases_of_a_step_are_its_wall_time(tmp_path):
    wall = Wall()
    run(tmp_path, callbacks=[wall])
    for row in lines(tmp_path):
        seconds = phases(row)
        assert all(value > 0 for value in seconds.values())
        inside = sum(seconds.values()) - seconds["data"]  # the batch is fetched before a step begins
        assert inside <= wall.seconds[row["step"]] * 1.01
        assert sum(seconds.values()) >= 0.8 * wall.seconds[row["step"]]


@pytest.mark.parametrize("phase", PHASES)
def test_what_is_slow_shows_in_its_phase(tmp_path, monkeypatch, phase):
    """A pause somewhere lengthens that phase; the pause is in no other one."""
    model = student()
    sleep = {name: (lambda *more: time.sleep(PAUSE)) if name == phase else (lambda *more: None) for name in PHASES}
    inner = model.get_base_model().model.layers[0]
    trained = next(p for p in model.parameters() if p.requires_grad)
    inner.register_forward_pre_hook(lambda *more: (sleep["forward"] if torch.is_grad_enabled() else sleep["teacher"])())
    trained.register_hook(lambda gradient: sleep["backward"]())
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **o: (sleep["optimizer"](), step(*a, **o))[1])
    trainer = BALoRATrainer(
        model,
        ALL_ON,
        arguments(tmp_path, max_steps=2, logging_steps=1),
        metrics=tmp_path / "metrics.jsonl",
        train_dataset=ragged_samples(8),
        data_collator=lambda samples: (sleep["data"](), collate(samples))[1],
    )
    trainer.train()
    first = phases(lines(tmp_path)[0])
    assert first[phase] >= PAUSE
    assert first[phase] == max(first.values())


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
    monkeypatch.setattr("ba_lora.gauges._now", lambda: waited.append(1) or time.perf_counter())
    run(tmp_path, max_steps=6, logging_steps=6, logging_first_step=False)
    assert [row["step"] for row in lines(tmp_path)] == [1, 6]
    laps = 1 + 2 * 4 + 1  # the beginning; data, teacher, forward, backward of two micro-batches; the optimiser
    assert len(waited) == 2 * laps


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
