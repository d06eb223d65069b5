"""SIGINT and SIGTERM to a matrix of runs, at any moment: it ends in order, leaves no process behind, and goes on when started again."""

import json
import os
import signal
import sys

import psutil
import pytest

from tests.processes import GROUP, LIMIT, ROOT, SIGNALS, found, lines_of, orphans, send, sleeping, start, wait_until

SLOW = pytest.mark.slow
RUNS = """
name: small
config: CONFIG
methods: {lora: {method: lora, limit: LIMIT, rank: 4}}
seeds: [1, 2, 3, 4]
"""
IN_WORKERS = 'evaluate: {test: {data: "tinymath:test", limit: 400}}\n'


def matrix(folder, more=IN_WORKERS, limit=640, command="run"):
    """The words of a matrix of four runs, two at once, in `folder`."""
    file = folder / "small.yaml"
    text = RUNS.replace("CONFIG", str(ROOT / "configs/nlg/tiny.yaml")).replace("LIMIT", str(limit))
    file.write_text(text + more)
    words = [sys.executable, "-m", "ba_lora.experiments", command, str(file), "--runs", str(folder / "runs")]
    return [*words, "--jobs", "2"]


def assert_stopped(status, said, number, folder):
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 75}[number], said
    assert f"stopped: {signal.Signals(number).name} after 0 of 4 runs; the same command" in said
    assert "Traceback" not in said and "leaked" not in said and said.count("stopped:") == 1
    assert list(folder.rglob("*.failed")) == []


@pytest.mark.parametrize(
    ("number", "group"),
    [
        pytest.param(signal.SIGINT, True, id="Ctrl-C"),
        *(pytest.param(*which, marks=SLOW) for which in ((2, False), (15, False), (15, True))),
    ],
)
def test_a_matrix_whose_workers_import_their_libraries_ends(tmp_path, number, group):
    environment, asleep = sleeping(tmp_path, "accelerate")
    with orphans() as left:
        process = start(*matrix(tmp_path), env=environment)
        wait_until(lambda: len(asleep()) == 2, process)
        assert_stopped(*send(process, number, group), number, tmp_path)
        assert left() == [] and len(asleep()) == 2  # no further run was started


@pytest.mark.slow
def test_a_tuning_ends_too(tmp_path):
    environment, asleep = sleeping(tmp_path, "accelerate")
    rates = 'tuning: {seed: 7, data: "tinymath:validation", limit: 5, learning_rates: [0.001, 0.002, 0.003, 0.004]}\n'
    with orphans() as left:
        process = start(*matrix(tmp_path, IN_WORKERS + rates, command="tune"), env=environment)
        wait_until(lambda: len(asleep()) == 2, process)
        assert_stopped(*send(process, signal.SIGINT, group=True), signal.SIGINT, tmp_path)
        assert left() == [] and not list(tmp_path.rglob("tuning.json"))


@pytest.mark.parametrize(
    "whom", ["the parent", *(pytest.param(who, marks=SLOW) for who in ("a worker", "the dead parent"))]
)
def test_a_matrix_of_commands_leaves_none_of_them(tmp_path, whom):
    environment, asleep = sleeping(tmp_path, "accelerate")
    with orphans() as left:
        process = start(*matrix(tmp_path, ""), env=environment)
        wait_until(lambda: len(asleep()) == 2, process)
        if whom == "the parent":
            assert_stopped(*send(process, signal.SIGTERM), signal.SIGTERM, tmp_path)
        elif whom == "a worker":
            workers = [int(psutil.Process(int(each)).ppid()) for each in asleep()]
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            process.wait(LIMIT)
            assert "the workers ended early; not done: lora-s1, lora-s2, lora-s3, lora-s4" in process.communicate()[0]
        else:
            process.kill()
        assert left(30) == [] and not list(tmp_path.rglob("*.failed"))


@pytest.mark.slow
def test_workers_that_are_killed_leave_no_semaphore(tmp_path):
    with orphans() as left:
        process = start(*matrix(tmp_path))
        wait_until(lambda: len(found(tmp_path, "metrics.jsonl")) == 2, process)
        for worker in psutil.Process(process.pid).children():
            if "resource_tracker" not in " ".join(worker.cmdline()):
                worker.kill()
        out, said = process.communicate(timeout=LIMIT)
        assert "the workers ended early" in out and "leaked" not in said
        assert left() == []


@pytest.mark.slow
@SIGNALS
@GROUP
@pytest.mark.parametrize("moment", ["training", "measuring"])
@pytest.mark.parametrize("kind", ["workers", "commands", "launched"])
def test_a_matrix_ends_at_any_moment_and_goes_on(tmp_path, kind, moment, number, group):
    more = IN_WORKERS if kind == "workers" else ""
    environment = {"NPROC": "2"} if kind == "launched" else {}
    words = matrix(tmp_path, more, limit=64 if moment == "measuring" else 640)
    words = words if kind == "workers" else [*words, "--set", "eval_limit=2000"]
    with orphans() as left:
        process = start(*words, env=environment)
        if moment == "training":
            wait_until(lambda: lines_of(tmp_path), process)
        elif kind == "workers":
            wait_until(lambda: found(tmp_path, "adapter_model.safetensors"), process)
        else:
            wait_until(lambda: found(tmp_path, "generations.jsonl"), process)
        assert_stopped(*send(process, number, group), number, tmp_path)
        assert left() == []
    if moment == "training" and kind != "workers":
        assert list(tmp_path.rglob("checkpoint-*/manifest.json"))
    started = {folder.name for folder in tmp_path.glob("runs/small/*") if folder.is_dir()}
    assert started <= {"lora-s1", "lora-s2"}
    if (kind, number, group) == ("commands", signal.SIGTERM, False):
        words[-1] = "eval_limit=2"
        done = start(*words, "--seeds", "2")
        out, said = done.communicate(timeout=1000)
        assert done.returncode == 0 and out.count("trained and evaluated in") == 2, said
        resumed = json.loads((tmp_path / "runs/small/lora-s1/run.json").read_text())
        assert resumed["status"] == "finished"
