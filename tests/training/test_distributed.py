"""Two processes equal one process on the same micro-batches, with DeepSpeed and without."""

import json
import os
import socket
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from ba_lora.objective.settings import of_training
from ba_lora.training.run import leave_processes
from tests.training import two_processes

ROOT = Path(__file__).parents[2]


def result(folder):
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.load(folder / "tensors.pt", weights_only=True), of_training(metrics)


def launch(folder, *words, main=two_processes.main):
    """The result of `main` with two processes. They are forked, because each would import its libraries for 10 s."""
    import deepspeed

    # replaces DeepSpeed's own operator, which takes minutes to compile; test_launched_runs.py covers that one
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = torch.multiprocessing.get_context("fork")
    processes = [fork.Process(target=train_as, args=(main, rank, port, folder, *words)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    return result(folder)


def train_as(main, rank, port, folder, *words):
    """Train as torchrun's process `rank` of two; test_launched_runs.py starts torchrun itself."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of what was trained before the fork
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)  # a forked process does not have the threads of its parent
    main(folder, 2, *words)
    leave_processes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """method, steps, share → the result of training in this single process"""

    @cache
    def run(method, steps=20, share=1.0):
        folder = tmp_path_factory.mktemp("one")
        two_processes.main(folder, 4, method, None, steps, share)
        return result(folder)

    return run


def assert_trained_alike(one, two):
    """Steps of 4 micro-batches at learning rate 1e-3, all terms active: equal within 1e-5 of the update's norm."""
    (one, metrics_one), (two, metrics_two) = one, two
    assert torch.equal(one["start"], two["start"])
    update = (one["end"] - one["start"]).norm()
    assert update > 0.01
    assert ((one["end"] - two["end"]).norm() / update).item() <= 1e-5
    for a, b in zip(metrics_one, metrics_two, strict=True):
        for name in ("loss", "task", "consistency", "diversity", "spectrum", "lambda1", "lr", "tokens"):
            # abs: a KL near 0 is a small difference of float32 logarithms
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), (a["step"], name)


@pytest.mark.slow  # the fast tier trains two processes under ZeRO-3, below
@pytest.mark.parametrize("method", ["ba-lora", "full", "classifier", "delta"])
def test_two_processes_train_as_one(alone, tmp_path, method):
    assert_trained_alike(alone(method), launch(tmp_path / "two", method))


def cut_finely(file, stage):
    """A ZeRO config for a small model: at stage 3 even the smallest tensor is split, and only the next few are prefetched."""
    config = json.loads((ROOT / f"configs/deepspeed/zero{stage}.json").read_text())
    if stage == 3:
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 1000}
    file.write_text(json.dumps(config))
    return str(file)


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])  # test_launched_runs.py: 2
def test_two_processes_under_zero_train_as_one(alone, tmp_path, stage):
    config, steps = cut_finely(tmp_path / "zero.json", stage), 8
    assert_trained_alike(alone("ba-lora", steps), launch(tmp_path / "two", "ba-lora", config, steps))


@pytest.mark.slow
def test_two_processes_under_zero_2_train_the_delta_form_as_one(alone, tmp_path):
    config = cut_finely(tmp_path / "zero.json", 2)
    assert_trained_alike(alone("delta"), launch(tmp_path / "two", "delta", config))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["delayed", "full", "classifier", "dora", "delta"])
def test_zero_3_cuts_what_each_kind_of_run_has(alone, tmp_path, method):
    config = cut_finely(tmp_path / "zero.json", 3)
    assert_trained_alike(alone(method), launch(tmp_path / "two", method, config))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 2, 3], ids=["ddp", "zero2", "zero3"])
@pytest.mark.parametrize(("method", "share"), [("ba-lora", 0.5), ("ba-lora", 0.25), ("full", 0.5), ("classifier", 0.5)])
def test_two_processes_with_a_share_of_the_teacher_train_as_one_on_the_same_draws(
    alone, tmp_path, method, share, stage
):
    """At 0.25 of micro-batches of two the teacher runs in every other one. The epoch ends with step 20, in which a rank could be short."""
    config = stage and cut_finely(tmp_path / "zero.json", stage)
    one = alone(method, 20, share)
    assert_trained_alike(one, launch(tmp_path / "two", method, config, 20, share))
    assert all(row["consistency"] is not None for row in one[1])


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 2, 3], ids=["ddp", "zero2", "zero3"])
@pytest.mark.parametrize(("method", "held_out"), [("ba-lora", 7), ("ba-lora", 2), ("full", 7), ("classifier", 7)])
def test_two_processes_look_at_held_out_rows_as_one(tmp_path, method, held_out, stage):
    """7 samples in micro-batches of two: the processes have two micro-batches each, and the last one is short. 2 samples: one
    process has none. Before the training, the numbers are the same bits."""
    config = stage and cut_finely(tmp_path / "zero.json", stage)
    (tmp_path / "one").mkdir()
    two_processes.main(tmp_path / "one", 4, method, None, 8, 1.0, held_out)
    assert_trained_alike(result(tmp_path / "one"), launch(tmp_path / "two", method, config, 8, 1.0, held_out))
    one, two = (torch.load(tmp_path / name / "validation.pt", weights_only=True) for name in ("one", "two"))
    assert stage or one["first"] == two["first"]
    for look in ("best", "last"):
        assert one["state"][look] == pytest.approx(two["state"][look], rel=1e-4, abs=1e-6)
        assert one["state"][look]["consistency"] > 0
    start = result(tmp_path / "one")[0]["start"]
    assert ((one["best"] - two["best"]).norm() / (one["best"] - start).norm()).item() <= 1e-5
