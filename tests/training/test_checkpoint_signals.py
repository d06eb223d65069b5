"""A run that gets a signal: in a step, while the model is opened, while the adapter is written, twice, and under nohup."""

import os
import signal
import time

import pytest

from ba_lora.errors import Stopped
from ba_lora.training import run
from ba_lora.training.step_model import StepModel
from tests.training.lives import ADAPTIVE, assert_same, life, on_call, steps_in


def test_a_signal_gets_a_checkpoint_and_a_status_of_its_own(whole, tmp_path):
    folder = tmp_path / "run"
    note = on_call(StepModel, "begin_step", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status, said = life(folder, *ADAPTIVE, before=note)
    assert (status, Stopped.STATUS) == (75, 75)
    assert said.strip() == (
        f"stopped: SIGTERM after step 3 of 8; its checkpoint is in {folder}/checkpoints, continue with --resume"
    )
    assert steps_in(folder) == [3]
    note = on_call(StepModel, "begin_step", 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert life(folder, *ADAPTIVE, before=note)[0] == 75 and steps_in(folder) == [3, 5]
    assert life(folder, *ADAPTIVE)[0] == 0
    assert_same(folder, whole)
    assert not (folder / "checkpoints").exists()  # not requested


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "line"), [(signal.SIGINT, "error: interrupted"), (signal.SIGTERM, "error: ended by SIGTERM")]
)
def test_a_signal_while_the_model_is_opened_ends_the_run_with_one_line(tmp_path, number, line):
    opens = on_call(run.generation, "prepare", 1, send(number))
    assert life(tmp_path / "run", before=opens) == (128 + number, line + "\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_adapter_is_written_lets_the_run_end(whole, tmp_path, number):
    assert life(tmp_path / "run", *ADAPTIVE, before=on_call(run, "export", 1, send(number)))[0] == 0
    assert_same(tmp_path / "run", whole)


def test_a_second_ctrl_c_ends_a_run_within_its_step(tmp_path):
    def twice():
        send(signal.SIGINT)()
        time.sleep(1.1)
        send(signal.SIGINT)()

    status, said = life(tmp_path / "run", before=on_call(StepModel, "begin_step", 4, twice))
    assert (status, said) == (130, "error: interrupted\n") and steps_in(tmp_path / "run") == []


def test_a_run_under_nohup_ignores_ctrl_c_and_stops_at_sigterm(tmp_path):
    def before():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        on_call(StepModel, "begin_step", 2, send(signal.SIGINT))()
        on_call(StepModel, "begin_step", 4, send(signal.SIGTERM))()

    status, said = life(tmp_path / "run", before=before)
    assert status == 75 and said.startswith("stopped: SIGTERM after step 3 of 6; its checkpoint is in ")
