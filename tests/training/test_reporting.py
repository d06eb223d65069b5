"""TensorBoard gets the terms and weights of every logged step, in the run folder; a missing package is reported before training."""

import importlib.util
import json
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.objective.settings import TERMS
from ba_lora.training.command_line import parse
from ba_lora.training.run import train

ROOT = Path(__file__).parents[2]
SHORT = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--limit", "128", "--progress", "false"]


@pytest.mark.slow
def test_tensorboard_shows_what_metrics_jsonl_holds(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = ["--output_dir", str(tmp_path / "run"), "--report_to", "tensorboard", "--logging_steps", "3"]
    folder = train(parse([*SHORT, *words]))
    assert {path.name for path in folder.iterdir()} == {"adapter", "logs", "metrics.jsonl", "run.json"}
    events = reader.EventAccumulator(str(folder / "logs"))
    events.Reload()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 3, 4]
    for name in ("loss", *TERMS, "lambda1", "lambda2", "lambda3", "lr"):
        seen = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        expected = {row["step"]: row[name] for row in rows if row[name] is not None}
        assert seen == pytest.approx(expected, rel=1e-6), name
    config = json.loads((folder / "run.json").read_text())["config"]
    assert "report_to" not in config
    train(parse([*SHORT, *words[:2], "--overwrite"]))
    assert not (folder / "logs").exists()


def test_a_reporter_that_is_unknown_or_not_installed_is_one_line_and_nothing_is_written(tmp_path, monkeypatch):
    words = [*SHORT, "--output_dir", str(tmp_path / "run"), "--report_to"]
    with pytest.raises(UserError, match="--report_to 'tensorbord' is not known, did you mean 'tensorboard'"):
        train(parse([*words, "tensorbord"]))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    with pytest.raises(
        UserError, match="--report_to wandb needs the package wandb; install it with: pip install wandb"
    ):
        train(parse([*words, "wandb"]))
    assert not (tmp_path / "run").exists()
    assert parse([*words, "none"]).report_to is None
