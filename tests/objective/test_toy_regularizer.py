"""A regularizer is added in five files, as CONTRIBUTING.md says: a patch that adds one is applied to a copy, which trains with it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCH = Path(__file__).with_name("toy_regularizer.patch")
WORDS = ["--regularizers", "on", "--lambda4", "1e-4", "--log_all_terms", "--max_steps", "3", "--logging_steps", "1"]


def python(copy, *words):
    done = subprocess.run([sys.executable, *words], cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_the_patch_changes_five_files():
    files = [line for line in PATCH.read_text().splitlines() if line.startswith("+++ ")]
    assert len(files) == 5


@pytest.mark.slow
def test_a_regularizer_of_five_files_trains_from_hidden_states_and_is_reported_everywhere(tmp_path):
    copy, run = tmp_path / "copy", tmp_path / "run"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "results", "__pycache__", "tests")
    shutil.copytree(ROOT, copy, ignore=ignored)
    subprocess.run(["git", "apply", str(PATCH)], cwd=copy, check=True)
    said = python(copy, "train.py", "--output_dir", str(run), *WORDS)
    assert "the logits are kept" not in said
    bar = "from ba_lora.training import progress; print(progress.TERMS)"  # its terms; a bar needs a terminal
    assert "magnitude" in python(copy, "-c", bar)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        terms = {name: row[name] for name in ("consistency", "diversity", "spectrum", "magnitude")}
        added = sum(row[f"lambda{number}"] * value for number, value in enumerate(terms.values(), 1))
        assert row["lambda4"] == 1e-4 and row["magnitude"] > 0
        assert row["loss"] == pytest.approx(row["task"] + added, rel=1e-5)
    assert rows[-1]["magnitude"] < rows[0]["magnitude"]
    card = (run / "adapter" / "README.md").read_text()
    assert "| magnitude | mean squared norm of a row of logits | 0.0001 | constant |" in card
    assert "lambda4 0.0001 constant" in python(copy, "train.py", "--dry_run", *WORDS)
    python(copy, "-m", "ba_lora.experiments", "figure", str(run))
    assert (run / "terms.png").stat().st_size > 10_000
