"""The device check: what it writes, on an environment with only six packages, and the tables that are made of it."""

import os
import subprocess
import time

import pytest
import torch

from ba_lora.benchmark import device_check, device_parts, device_run, device_table
from ba_lora.errors import RunFailure, UserError
from ba_lora.files import read_json
from tests import lean
from tests.common import ROOT

SMOKE = ["--device", "cpu", "--smoke"]


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """The Python of an environment that has only what a GPU machine is known to have."""
    return lean.make(tmp_path_factory.mktemp("six"))


def check(python, out, *words):
    before = sorted(ROOT.glob("results/**/*"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = ["sh", str(ROOT / "scripts/gpu_check.sh"), *SMOKE, "--out", str(out), *words]
    done = subprocess.run(
        command, cwd=out.parent, env=environment | {"PYTHON": str(python)}, capture_output=True, text=True, timeout=900
    )
    assert sorted(ROOT.glob("results/**/*")) == before
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return {file.stem: read_json(file) for file in out.glob("*.json")}


@pytest.mark.slow
def test_the_first_part_needs_six_packages_and_says_what_ran(six, tmp_path):
    (found,) = check(six, tmp_path / "out", "--only", "exactness").values()
    assert (found["device"], found["card"], found["smoke"]) == ("cpu", "CPU", True)
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["datasets"] is None
    rows = {(row["what"], row["dtype"]): row["value"] for row in found["result"]}
    assert len(rows) == 20 and all(row["value"] <= row["limit"] for row in found["result"])
    assert [rows["step 0: consistency, chunked", dtype] for dtype in ("float32", "bfloat16")] == [0.0, 0.0]


def test_a_python_without_torch_is_refused_in_one_line():
    script, environment = str(ROOT / "scripts/gpu_check.sh"), os.environ | {"PYTHON": "false"}
    done = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: false has no torch; activate an environment")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_training_and_scoring_the_embedded_model_import_nothing_beside_the_six(six):
    modules = (
        "training.run",
        "training.first_checks",
        "training.prepare_generator",
        "inference.local",
        "benchmark.compare",
    )
    words = f"import eval.gsm8k, {', '.join(f'ba_lora.{each}' for each in modules)}, ba_lora.benchmark.train_body"
    done = subprocess.run([six, "-c", words], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_every_part_runs_on_the_six_packages(six, tmp_path):
    found = check(six, tmp_path / "out", "--minutes", "14")
    assert found.keys() == device_run.PARTS.keys() and not [name for name, each in found.items() if "failure" in each]
    trained = found["train-tiny"]["result"]
    assert trained["killed_after_step"] >= int(trained["continued"]) > 0 and trained["steps"] == 6
    assert trained["problems"] == 3 and 0 <= trained["score"] <= 1
    assert found["train-llama-2-7b"]["result"]["steps"] == 2
    text = device_table.sections(tmp_path / "out")
    assert device_table.NOT_RUN not in text and "failed" not in text and text.count("tiny sizes") == len(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (SMOKE, "--smoke writes no results: give another folder than results/gpu with --out"),
        ([*SMOKE, "--out", str(ROOT / "results/gpu")], "--smoke writes no results"),
        ([*SMOKE, "--out", "out", "--only", "exactnes"], "did you mean 'exactness'"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_options_that_cannot_be_are_refused(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        device_check.main(words)
    assert not list(tmp_path.iterdir()) and not device_table.RESULTS.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_the_check_says_how_to_try_it():
    with pytest.raises(UserError, match="torch finds no GPU; give --device cpu --smoke --out DIR"):
        device_check.main([])


def test_a_part_that_fails_or_comes_too_late_leaves_the_others_alone(tmp_path, monkeypatch, capsys):
    def fails(device, smoke, folder, end):
        raise RunFailure(f"no {folder / 'run'}")

    def is_late(device, smoke, folder, end):
        monkeypatch.setattr(time, "monotonic", lambda: end + 1)
        return []

    parts = {"exactness": lambda *_: [], "objective": fails, "train-tiny": is_late, "start": fails}
    monkeypatch.setattr(device_run, "PARTS", parts)
    with pytest.raises(RunFailure, match="these parts failed: objective, start; their files in"):
        device_check.main([*SMOKE, "--out", str(tmp_path)])
    found = {name: read_json(tmp_path / f"{name}.json") for name in parts}
    assert found["exactness"]["result"] == found["train-tiny"]["result"] == []
    assert found["objective"]["failure"] == "RunFailure: no FOLDER/run"
    assert found["start"]["failure"] == "not run: the 7 minutes had passed"
    assert "train-tiny: done" in capsys.readouterr().out


@pytest.mark.parametrize("value", [2e-5, float("nan")])
def test_a_value_above_its_limit_fails_the_part(value, monkeypatch):
    rows = [{"what": "loss", "dtype": "float32", "value": value, "limit": 1e-5}]
    monkeypatch.setattr(device_parts, "exactness", lambda device, smoke: rows)
    found = device_run.run_part("exactness", "cpu", True, time.monotonic())
    assert found["failure"].startswith("loss, float32: ") and found["result"] == rows


def test_the_guide_has_the_tables_of_the_results_that_are_here():
    page = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert device_table.written(page, device_table.sections(device_table.RESULTS), "gpu.md") == page


def test_tables_replace_only_what_lies_between_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"a\n{device_table.FIRST}old\n{device_table.LAST}b\n", encoding="utf-8")
    device_table.main([str(tmp_path), "--write", str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("a\n") and text.endswith("b\n") and "old" not in text
    assert text.count(device_table.NOT_RUN) == len(device_table.PARTS)
    assert device_table.PARTS.keys() == device_run.PARTS.keys()
    page.write_text("a", encoding="utf-8")
    with pytest.raises(UserError, match="has no lines <!-- gpu check --> and <!-- /gpu check -->"):
        device_table.main([str(tmp_path), "--write", str(page)])
