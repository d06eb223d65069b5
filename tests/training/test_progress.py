"""Lines instead of a progress bar: when one is printed, and what it says."""

from types import SimpleNamespace

import pytest

from ba_lora.training import progress
from ba_lora.training.progress import StepBar, StepLines, continues_from


def lines(monkeypatch, capsys, *, seconds, rows, first=0, total=100, terminal=False, wanted=True, main=True):
    """stdout of a training from step `first` of `total`, whose steps take `seconds`; rows: {step: loss} of those logged."""
    source = SimpleNamespace(row=None)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal, raising=False)
    args, shown = SimpleNamespace(disable_tqdm=not wanted), StepLines(source)
    state = SimpleNamespace(global_step=first, max_steps=total, is_world_process_zero=main)
    shown.on_train_begin(args, state, None)
    for step, taken in enumerate(seconds, first + 1):
        clock.now += taken
        state.global_step = step
        if step in rows:
            source.row = {"step": step, "loss": rows[step]}
        shown.on_step_end(args, state, None)
    return capsys.readouterr().out.splitlines()


def test_the_first_step_and_then_every_half_minute_has_a_line(monkeypatch, capsys):
    assert lines(monkeypatch, capsys, seconds=[10] * 5, rows={1: 2.0, 5: 1.25}) == [
        "step 1 of 100, loss 2.000, about 0:16:30 left",
        "step 4 of 100, loss 2.000 (step 1), about 0:16:00 left",
    ]


def test_a_resumed_run_counts_only_its_own_steps(monkeypatch, capsys):
    assert lines(monkeypatch, capsys, seconds=[60], rows={91: 0.5}, first=90) == [
        "step 91 of 100, loss 0.500, about 0:09:00 left"
    ]


@pytest.mark.parametrize(
    ("options", "count"),
    [({"terminal": True}, 0), ({"terminal": True, "wanted": False}, 1), ({"wanted": False}, 1), ({"main": False}, 0)],
)
def test_there_is_a_bar_or_there_are_lines_on_the_first_process(monkeypatch, capsys, options, count):
    assert len(lines(monkeypatch, capsys, seconds=[1], rows={1: 2.0}, **options)) == count


def test_a_bar_is_drawn_only_on_a_terminal(monkeypatch):
    args = SimpleNamespace(disable_tqdm=False)
    state = SimpleNamespace(global_step=0, max_steps=2, is_world_process_zero=True)
    for terminal in (False, True):
        monkeypatch.setattr(progress.sys.stderr, "isatty", lambda answer=terminal: answer, raising=False)
        bar = StepBar(SimpleNamespace(row=None))
        bar.on_train_begin(args, state, None)
        assert (bar.bar is not None) == terminal
        bar.on_train_end(args, state, None)


def test_a_resumed_run_says_where_it_begins():
    assert continues_from("runs/a/checkpoints/checkpoint-40") == "continues after step 40"
    assert continues_from(None) == "no checkpoint to continue from, so the run starts before step 1"
