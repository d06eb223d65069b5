"""A run that overfits on purpose keeps its best step, ends early, survives being killed, and says in its card what was chosen."""

import json
import os
import shutil
import signal

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from ba_lora.files import read_json
from ba_lora.objective.settings import of_training, of_validation
from ba_lora.training import checkpoints, run
from ba_lora.training.step_model import StepModel
from tests.training.lives import life, on_call, steps_in, weights

# 12 rows of arithmetic for 30 steps: the loss on the 4 held-out rows falls, then rises.
OVERFITS = ["--limit", "16", "--validation_share", "0.25", "--epochs", "10", "--validation_steps", "2"]
OVERFITS += ["--learning_rate", "1e-2", "--lr_scheduler", "constant", "--warmup_ratio", "0", "--logging_steps", "3"]
OVERFITS += ["--save_steps", "8"]
BEST = ["--keep", "best", "--patience", "3"]
pytestmark = pytest.mark.slow


def lines(folder):
    """(rows of training steps, looks at the held-out rows), without their times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: row[name] for name in row if "second" not in name and name != "peak_memory"} for row in rows]
    return of_training(rows), of_validation(rows)


def facts_of(folder):
    return read_json(folder / "run.json")["validation"]


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "overfitted"
    status, said = life(folder, *OVERFITS, *BEST)
    assert status == 0, said
    return folder


def test_the_loss_on_held_out_rows_rises_and_the_step_before_is_saved(overfitted, tmp_path):
    """A run of as many steps as the best one ends with the same adapter; PiSSA alone, since weights follow the planned steps."""
    facts, (_, looks) = facts_of(overfitted), lines(overfitted)
    losses = {look["step"]: look["validation_task"] for look in looks}
    best = min(losses, key=losses.get)
    assert facts["best"]["step"] == facts["saved_step"] == best and facts["best"]["task"] == losses[best]
    assert facts["last"]["step"] == best + 6 == max(losses) < facts["planned_steps"] == 30 and facts["stopped_early"]
    assert read_json(overfitted / "run.json")["steps"] == best + 6
    assert losses[best + 6] > losses[best] < losses[2]
    for name, words in (("pissa", BEST), ("short", ["--max_steps", "0"])):
        if name == "short":
            words = ["--max_steps", str(facts_of(tmp_path / "pissa")["best"]["step"])]
        status, said = life(tmp_path / name, *OVERFITS, "--method", "pissa", *words)
        assert status == 0, said
    assert facts_of(tmp_path / "pissa")["stopped_early"]
    assert weights(tmp_path / "pissa") == weights(tmp_path / "short")


def test_the_card_says_what_was_chosen_on_which_rows(overfitted):
    facts, card = facts_of(overfitted), ModelCard.load(overfitted / "adapter" / "README.md").text
    best, last = facts["best"], facts["last"]
    for piece in (
        "Held out: a share of 0.25 of the training data, drawn by the seed 42 and not trained on; 4 rows of",
        f"`{facts['hash']}`",
        f"**These rows took part in the choice of what is saved here**: step {best['step']} has the lowest task loss",
        f"The run ended early, after step {last['step']} of 30,",
        f"| lowest task loss (saved) | {best['step']} | {best['task']:.4g} |",
        f"| last | {last['step']} | {last['task']:.4g} |",
        "`tinymath:train`: 12 samples",
    ):
        assert piece in card, piece


def test_a_run_killed_anywhere_keeps_the_best_step_of_the_uninterrupted_one(overfitted, tmp_path):
    folder, best = tmp_path / "run", facts_of(overfitted)["best"]["step"]
    kept = folder / "checkpoints"
    assert 8 < best < 14  # as the calls below are counted; checkpoints are written after steps 8 and 16
    kills = [
        on_call(
            checkpoints, "keep_best", best // 2
        ),  # about to write the best step's tensors; those of step 10 are there
        on_call(StepModel, "begin_step", best - 8 + 3),  # they are written, and no checkpoint has them yet
        on_call(os, "link", 1),  # about to put back those of checkpoint-8
        on_call(run, "export", 1),  # after the early end
    ]
    for number, kill in enumerate(kills):
        assert life(folder, *OVERFITS, *BEST, before=kill)[0] == -signal.SIGKILL, number
        assert steps_in(folder) == ([8] if number < 3 else [16, best + 6]), number
        now, of_8 = ((place / checkpoints.BEST).is_file() for place in (kept, kept / "checkpoint-8"))
        assert now and of_8 == (number < 3), number
        if number < 3:
            later, of_8 = ((place / checkpoints.BEST).read_bytes() for place in (kept, kept / "checkpoint-8"))
            assert later != of_8, number
    assert checkpoints.flaw(checkpoints.saved(kept)[0]) is None
    status, said = life(folder, *OVERFITS, *BEST)
    assert status == 0, said
    assert weights(folder) == weights(overfitted) and lines(folder) == lines(overfitted)
    assert facts_of(folder) == facts_of(overfitted) and steps_in(folder) == steps_in(overfitted)
    assert not list(folder.rglob(".*"))
    for checkpoint in checkpoints.saved(kept):
        one, two = (load_file(home / checkpoints.BEST) for home in (checkpoint, kept))
        assert one.keys() == two.keys() and checkpoints.flaw(checkpoint) is None
    assert life(folder, *OVERFITS, *BEST)[1].strip().endswith("holds this run, finished: nothing to do")


def test_a_checkpoint_whose_best_step_is_damaged_is_skipped_and_named(overfitted, tmp_path):
    folder = shutil.copytree(overfitted, tmp_path / "run")
    last, before = checkpoints.saved(folder / "checkpoints")
    (last / checkpoints.BEST).write_bytes((last / checkpoints.BEST).read_bytes()[:-4] + b"zzzz")
    (folder / "checkpoints" / checkpoints.BEST).unlink()
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running", "checksum": None}))
    shutil.rmtree(folder / "adapter")
    status, said = life(folder, *OVERFITS, *BEST)
    assert status == 0 and f"{last} is not whole (best.safetensors was altered) and is skipped" in said, said
    assert weights(folder) == weights(overfitted) and before.name != last.name


def test_a_signal_after_the_best_step_loses_nothing(overfitted, tmp_path):
    """SIGTERM writes a checkpoint, without --save_steps too."""
    words = [word for word in OVERFITS if word not in ("--save_steps", "8")]
    best, folder = facts_of(overfitted)["best"]["step"], tmp_path / "run"
    stop = on_call(StepModel, "begin_step", best + 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status, said = life(folder, *words, *BEST, before=stop)
    assert status == 75, said
    assert steps_in(folder) == [best + 1]
    status, said = life(folder, *words, *BEST)
    assert status == 0, said
    assert weights(folder) == weights(overfitted) and facts_of(folder) == facts_of(overfitted)
    assert not (folder / "checkpoints").exists()
