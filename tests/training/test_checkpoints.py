"""Runs that survive being killed at any moment, or out of disk or memory; each continues to the same bits."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from ba_lora.errors import RunFailure
from ba_lora.methods import pissa
from ba_lora.models import load_model
from ba_lora.tiny import MODEL_DIR
from ba_lora.training import checkpoints, interruptions, run
from ba_lora.training.command_line import parse
from ba_lora.training.step_model import StepModel
from tests.processes import ROOT, default_signals
from tests.training.lives import ADAPTIVE, SHORT, assert_same, life, metrics, on_call, steps_in, weights


def write(file):
    """Use up all the space that is left."""
    with open(file, "wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(b"x" * 4096)


def test_a_run_killed_in_a_step_and_in_its_checkpoint_ends_as_the_uninterrupted_one(whole, tmp_path):
    folder = tmp_path / "run"
    words = [*ADAPTIVE, "--save_steps", "2"]
    kills = [
        (on_call(StepModel, "begin_step", 6), [2, 4]),  # the first call is the model's own; this is in step 5
        (on_call(os, "rename", 1), [2, 4]),  # checkpoint-6 is filled but not yet renamed
        (on_call(checkpoints, "prune", 1), [2, 4, 6]),  # it is renamed, but the old one is not yet removed
    ]
    for number, (kill, left) in enumerate(kills):
        assert life(folder, *words, before=kill)[0] == -signal.SIGKILL
        assert steps_in(folder) == left, number
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 9, "lo')  # as left by a kill within a line
    assert life(folder, *words)[0] == 0
    assert_same(folder, whole)
    assert steps_in(folder) == [6, 8]
    for tensors in map(load_file, (folder / "checkpoints").rglob("trained.safetensors")):
        assert tensors and all(".lora_" in name for name in tensors)
    assert life(folder, *words)[1].strip().endswith("holds this run, finished: nothing to do")


def test_checkpoints_that_are_not_whole_are_skipped_and_named(tmp_path, caplog):
    folder = tmp_path / "run"
    words = [*SHORT, "--save_steps", "2", "--output_dir", str(folder)]
    run.train(parse(words))
    end = weights(folder)
    shutil.copytree(folder / "checkpoints" / "checkpoint-6", folder / "checkpoints" / "checkpoint-8")
    kept = folder / "checkpoints"
    (kept / "checkpoint-8" / "manifest.json").write_text('{"files": {"trained')
    (kept / "checkpoint-6" / "optimizer.pt").unlink()
    shutil.copytree(kept / "checkpoint-4", kept / "checkpoint-5")
    os.truncate(kept / "checkpoint-5" / "trained.safetensors", 5000)
    assert checkpoints.newest(kept) == kept / "checkpoint-4"
    named = [f"{r.args[0].name}: {r.args[1]}" for r in caplog.records if r.name == "ba_lora.training.checkpoints"]
    size = (kept / "checkpoint-4" / "trained.safetensors").stat().st_size
    assert named == [
        "checkpoint-8: manifest.json cannot be read",
        "checkpoint-6: optimizer.pt is missing",
        f"checkpoint-5: trained.safetensors has 5000 bytes and had {size}",
    ]
    with open(kept / "checkpoint-4" / "trained.safetensors", "r+b") as file:
        file.seek(size - 1)
        last = file.read(1)
        file.seek(size - 1)
        file.write(bytes([last[0] ^ 1]))
    assert checkpoints.flaw(kept / "checkpoint-4") == "trained.safetensors was altered"
    with open(kept / "checkpoint-4" / "trained.safetensors", "r+b") as file:
        file.seek(size - 1)
        file.write(last)
    shutil.rmtree(folder / "adapter")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    run.train(parse([*words, "--resume"]))
    assert weights(folder) == end and steps_in(folder) == [4, 6]


def test_a_resumed_run_decomposes_nothing(whole, tmp_path):
    folder, words = tmp_path / "run", [*ADAPTIVE, "--decomposition_cache", "none"]
    stop = on_call(StepModel, "begin_step", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert life(folder, *words, before=stop)[0] == 75
    decomposes = on_call(pissa, "decompose_all", 1)
    assert life(tmp_path / "other", *words, before=decomposes)[0] == -signal.SIGKILL
    assert life(folder, *words, before=decomposes)[0] == 0
    assert_same(folder, whole)
    assert json.loads((folder / "run.json").read_text())["decomposition"]["decomposed"] > 0  # from the first start


def test_another_start_is_refused(tmp_path):
    folder = tmp_path / "run"
    stop = on_call(StepModel, "begin_step", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert life(folder, before=stop)[0] == 75
    start = folder / "checkpoints" / "start.safetensors"
    tensors = load_file(start)
    layer = "model.layers.0.self_attn.q_proj"
    factors = checkpoints.initial_factors(start)[layer]
    assert [tuple(factor.shape) for factor in factors] == [(4, 192), (192, 4)]
    name = f"base_model.model.{layer}.lora_B.default.weight"
    assert torch.equal(factors[1], tensors[name])
    bits = start.read_bytes()
    save_file(tensors | {"head.weight": torch.zeros(2)}, start)
    status, said = life(folder)
    assert status == 2 and "the initial value of head.weight differs" in said and len(said.splitlines()) == 1
    start.write_bytes(bits[:100])
    status, said = life(folder)
    assert status == 2 and f"{start} cannot be read" in said and len(said.splitlines()) == 1
    start.write_bytes(bits)
    last = on_call(
        StepModel, "begin_step", 5, lambda: os.kill(os.getpid(), signal.SIGTERM)
    )  # of 6 steps; the run ends by itself
    assert life(folder, before=last)[0] == 0
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def poison(step):
    """A `before` that makes a trained value non-finite at the end of `step`."""

    def put():
        end = interruptions.StopSignals.on_step_end

        def replaced(self, args, state, control, model=None, **objects):
            if state.global_step == step:
                next(p for p in model.parameters() if p.requires_grad).data.view(-1)[0] = float("nan")
            return end(self, args, state, control, **objects)

        interruptions.StopSignals.on_step_end = replaced

    return put


FAILURES = {
    "NaN in a step": (poison(3), "error: the task term is nan at step 4; lower --learning_rate"),
    "NaN in a checkpoint": (poison(4), "is not finite, so no checkpoint is written; continue from the one before"),
    "memory": (  # in the third step; each step has two micro-batches
        on_call(StepModel, "record", 6, lambda: torch.zeros(10**14)),
        "error: after step 2: out of memory; lower --micro_batch_size (the step stays as it is)",
    ),
}


@pytest.mark.parametrize(("before", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_line_and_loses_nothing(tmp_path, before, message):
    folder = tmp_path / "run"
    status, said = life(folder, "--save_steps", "2", "--logging_steps", "1", before=before)
    assert status == 1 and message in said and len(said.strip().splitlines()) == 1
    assert steps_in(folder) == [2] and checkpoints.flaw(folder / "checkpoints" / "checkpoint-2") is None
    assert [row[0] for row in metrics(folder)][:2] == [1, 2]
    assert not [path for path in folder.rglob(".*")]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore."),
            "the GPU is out of memory; lower",
        ),
        (MemoryError(), "out of memory; lower --micro_batch_size"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left on the disk"),
    ],
)
def test_failures_of_the_machine_are_told(tmp_path, error, said):
    told = pytest.raises(RunFailure, match=f"^after step 7: {said}.*; then continue with --resume$")
    with told as raised, interruptions.explained(lambda: "after step 7", tmp_path / "not" / "there"):
        raise error
    assert raised.value.status == 1 and "\n" not in str(raised.value)
    with pytest.raises(OSError, match="Permission"), interruptions.explained(str, tmp_path):
        raise OSError(errno.EACCES, "Permission denied")


def test_an_unreadable_shard_is_named(tmp_path):
    model = tmp_path / "model"
    load_model("tiny").save_pretrained(model, max_shard_size="4MB")
    for file in MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, model)
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) > 1
    os.truncate(shards[1], shards[1].stat().st_size // 2)
    status, said = life(tmp_path / "run", "--model", str(model))
    assert status == 1 and len(said.strip().splitlines()) == 1
    assert (
        said.startswith(f"error: {shards[1]}, a part of model {model}, cannot be read (")
        and "download it again" in said
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts an empty disk of the given number of kilobytes."""
    if os.geteuid() or not os.environ.get("CI"):
        pytest.skip("needs to mount a small disk: run as root with CI=true")
    place = tmp_path / "disk"
    place.mkdir()

    def mount(kilobytes):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], capture_output=True)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted: {done.stderr.decode().strip()}")
        return place

    yield mount
    subprocess.run(["umount", place], capture_output=True)


def test_a_full_disk_keeps_the_checkpoint_before(small_disk):
    folder = small_disk(6000) / "run"
    fill = folder.parent / "others"
    fills = on_call(Trainer, "_save_optimizer_and_scheduler", 3, lambda: write(fill))
    status, said = life(folder, "--save_steps", "2", before=fills)
    place = folder / "checkpoints" / "checkpoint-6"
    assert status == 1 and said.startswith(f"error: {place} could not be written: no space is left on the disk")
    assert len(said.strip().splitlines()) == 1 and "continue with --resume" in said
    assert steps_in(folder) == [2, 4] and not [path for path in folder.rglob(".*")]
    fill.unlink()
    assert life(folder, "--save_steps", "2")[0] == 0
    assert steps_in(folder) == [4, 6]


@pytest.mark.slow
def test_twenty_random_kills_lose_nothing(tmp_path):
    """Half of the kills come by a timer, on the plain command; half at a random call while a checkpoint is written."""
    words = ["--logging_steps", "1", "--save_steps", "1", "--limit", "640", "--epochs", "4", "--max_length", "128"]
    words += ["--effective_batch_size", "32", "--micro_batch_size", "16"]  # 80 steps
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(folder):
        command = [sys.executable, "train.py", *SHORT, *words, "--output_dir", str(folder), "--resume"]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    whole, folder, chance = tmp_path / "whole", tmp_path / "run", random.Random(7)
    assert start(whole).wait() == 0
    writing = [(checkpoints, "_sync"), (checkpoints, "sha256"), (checkpoints, "save_file"), (checkpoints, "write_json")]
    writing += [(torch, "save"), (os, "rename"), (shutil, "rmtree"), (Trainer, "_save_rng_state")]
    begun, kills, reached = time.perf_counter(), 0, []
    for number in range(20):
        if number % 2:
            (owner, name), call = chance.choice(writing), chance.randint(1, 12)
            kills += life(folder, *words, before=on_call(owner, name, call))[0] == -signal.SIGKILL
        else:
            lines = folder / "metrics.jsonl"
            before = lines.stat().st_mtime_ns if lines.exists() else 0
            wanted = max([0, *reached]) + chance.randint(1, 4)
            process = start(folder)
            while process.poll() is None and not (
                lines.exists() and lines.stat().st_mtime_ns != before and lines.read_bytes().count(b"\n") >= wanted
            ):  # training begins by writing the metrics lines that it keeps
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        reached.append(max(steps_in(folder), default=0))
    process = start(folder)
    error = process.communicate()[1].decode()
    assert process.returncode == 0, error
    print(f"{kills} kills in {time.perf_counter() - begun:.0f} s, newest checkpoints after them: {reached}")
    assert kills == 20 and reached == sorted(reached) and reached[-1] > 10
    assert_same(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["a process", "torchrun"])
@pytest.mark.parametrize(
    "more", [[], ["--deepspeed", str(ROOT / "configs/deepspeed/zero2.json")]], ids=["ddp", "zero2"]
)
def test_two_processes_stop_after_the_same_step_and_continue(tmp_path, whom, more):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py", *SHORT]
    words += ["--limit", "160", "--logging_steps", "1", *more, "--output_dir"]  # 40 steps
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

    def start(folder, *others):
        with open(folder.with_suffix(".txt"), "w") as said:
            options = {"stdout": said, "stderr": said, "preexec_fn": default_signals}
            return subprocess.Popen([*words, str(folder), *others], cwd=ROOT, env=environment, **options)

    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert start(whole).wait() == 0
    process = start(folder)
    while process.poll() is None and (not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < 3):
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]) if whom == "a process" else process.pid, signal.SIGTERM)
    assert process.wait() == 1  # torchrun's own status
    said = folder.with_suffix(".txt").read_text()
    assert said.count("stopped: SIG") + said.count("stopped: a signal to another process") == 1
    (checkpoint,) = checkpoints.saved(folder / "checkpoints")
    assert checkpoints.flaw(checkpoint) is None and 3 <= checkpoints.step_of(checkpoint) < 40
    names = {name.removeprefix("trained.") for name in load_file(checkpoint / "trained.safetensors")}
    for part in checkpoint.rglob("*model_states.pt"):
        assert {name.removeprefix("student.") for name in torch.load(part, weights_only=True)["module"]} == names
    assert start(folder, "--resume").wait() == 0
    assert_same(folder, whole)
