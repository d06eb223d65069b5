"""The examples run as they stand, without the hub, and are as short as the page of integrations says."""

import re

import pytest

import ba_lora
from ba_lora.models import load_model
from tests.common import ROOT, command
from tests.trl import trainers  # noqa: F401  skips this file where TRL is missing

EXAMPLES = ROOT / "examples"


def test_the_loops_have_at_most_25_lines_and_the_others_less_than_60():
    for file in EXAMPLES.glob("*.py"):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= (25 if file.name.startswith("loop_") else 59), file.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loop_torch", "loop_accelerate"])
def test_a_loop_starts_at_the_base_learns_and_exports(name, tmp_path):
    done = command(f"examples/{name}.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = [
        {key: float(value) for key, value in re.findall(r"'(\w+)': ([-\d.e]+)", line)}
        for line in done.stdout.splitlines()
    ]
    rows = [row for row in values if "task" in row]
    assert rows[0]["consistency"] == 0.0 < rows[-1]["consistency"]
    assert rows[-1]["task"] < 0.7 * rows[0]["task"]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["task"] + 0.25 * rows[-1]["consistency"], abs=1e-3)
    assert ba_lora.load(tmp_path / "runs" / name / "adapter", load_model("tiny")) is not None


@pytest.mark.slow
def test_the_trl_example_learns_and_logs_the_terms(tmp_path):
    done = command("examples/trl_sft.py", str(tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {key: float(value) for key, value in re.findall(r"'(\w+)': ([-\d.]+)", done.stdout.splitlines()[-1])}
    assert found["eval_consistency"] > 0 and found["eval_task"] < 5
    assert found["eval_loss"] == pytest.approx(found["eval_task"] + 0.25 * found["eval_consistency"], abs=2e-3)
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_only_the_residual_is_far_from_the_base_in_the_table_of_references():
    done = command("examples/reference_kl.py")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(LoRA|PiSSA, \w+) +(-?[\d.]+) +(-?[\d.]+)$", done.stdout, flags=re.MULTILINE)
    theirs = {name: float(value) for name, value, _ in rows}
    assert [abs(float(ours)) < 1e-5 for *_, ours in rows] == [True] * 3
    assert theirs["LoRA"] == theirs["PiSSA, delta"] == 0.0 and theirs["PiSSA, residual"] > 1
