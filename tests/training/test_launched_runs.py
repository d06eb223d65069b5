"""Launched runs: two processes, also as two machines and under ZeRO, train as one process does, resume and stop."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from ba_lora.files import read_json, write_json
from ba_lora.models import load_model
from ba_lora.training import checkpoints
from tests.processes import default_signals
from tests.training.test_launch import PLACES, TINY, ZERO2

ROOT = Path(__file__).parents[2]

# 20 steps of the embedded run, every term active from the first.
STEPS = ["--limit", "640", "--learning_rate", "1e-3", "--logging_steps", "1", "--progress", "false"]
STEPS += [word for number in "123" for word in (f"--lambda{number}_schedule", "constant")]


def begin(folder, *words, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in PLACES}
    return subprocess.Popen(
        [*words, *STEPS, "--output_dir", str(folder)],
        cwd=ROOT,
        env=kept | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=default_signals,
    )


def end(process):
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-3000:]
    return out


def result(folder):
    """(the exported tensors, the lines of metrics.jsonl, the logits of the original base with the adapter in stock PEFT)"""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with torch.no_grad():
        model = PeftModel.from_pretrained(load_model("tiny"), str(folder / "adapter"))
        logits = model(input_ids=torch.arange(40, 60)[None]).logits
        with model.disable_adapter():
            change = logits - model(input_ids=torch.arange(40, 60)[None]).logits
    return load_file(folder / "adapter" / "adapter_model.safetensors"), metrics, change


def run(folder, *words, **environment):
    end(begin(folder, *words, **environment))
    return result(folder)


def updates(adapter):
    """(B·A − B0·A0 of every layer, the trained tensors minus their start), as one vector each; A is (2r, in), B (out, 2r)."""
    products, ways = [], []
    for name, a in adapter.items():
        if "lora_A" in name:
            a, b = a.double(), adapter[name.replace("lora_A", "lora_B")].double()
            products.append((b @ a).flatten())
            ways += [(new - start).flatten() for new, start in (a.chunk(2), (b.chunk(2, 1)[0], -b.chunk(2, 1)[1]))]
    return torch.cat(products), torch.cat(ways)


def same(one, two):
    """Check that two runs trained the same 20 steps: the update agrees within 1e-5 of its norm, and so does the change of the base's logits.

    DistributedDataParallel gives identical numbers, and so does ZeRO-2 without clipping. The remaining differences are the
    rounding of the norm used for clipping, and of products of ZeRO-3's pieces.
    """
    for a, b in zip(one[1], two[1], strict=True):
        for name in ("loss", "task", "consistency", "diversity", "spectrum", "lambda1", "lambda3", "lr", "tokens"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), (a["step"], name)
    assert len(one[1]) == 20 and one[1][-1]["consistency"] > 0.01 and one[0].keys() == two[0].keys()
    for update, other in zip((*updates(one[0]), one[2]), (*updates(two[0]), two[2]), strict=True):
        assert update.norm() > 1
        assert ((update - other).norm() / update.norm()).item() <= 1e-5


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "alone", sys.executable, "train.py", "--config", TINY)


ONE = [sys.executable, "-m", "ba_lora.experiments", "one", TINY, "--eval_limit", "4"]  # as in scripts/ba-lora.sh


@pytest.mark.slow  # offloading builds DeepSpeed's AdamW on first use: some minutes
@pytest.mark.parametrize("config", ["zero2", "zero3", "zero2-offload", "zero3-offload"])
def test_zero_on_two_processes_trains_and_evaluates_as_one_process(alone, tmp_path, config):
    """The script's own path: launch, train under DeepSpeed, evaluate in the starting process."""
    merge = ["--merge"] if config == "zero3" else []  # opens the original base beside the split one
    two = run(tmp_path / "zero", *ONE, "--deepspeed", ZERO2.replace("zero2", config), *merge, NPROC="2")
    same(alone, two)
    assert (tmp_path / "zero" / "merged" / "model.safetensors").is_file() == (config == "zero3")
    assert json.loads((tmp_path / "zero" / "run.json").read_text())["processes"] == 2
    assert json.loads((tmp_path / "zero" / "eval" / "gsm8k" / "score.json").read_text())["n"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_two_processes_under_zero_read_the_sketch_that_one_process_reads(tmp_path, config):
    sketch = ["--config", TINY, "--teacher_cache", str(tmp_path / "cache"), "--teacher_cache_form", "sketch"]
    one = run(tmp_path / "one", sys.executable, "train.py", *sketch)
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    launched += [*sketch, "--deepspeed", ZERO2.replace("zero2", config)]
    built = sorted((file.name, file.stat().st_mtime_ns) for file in (tmp_path / "cache").rglob("*.safetensors"))
    two = run(tmp_path / "two", *launched, DS_ACCELERATOR="cpu")
    same(one, two)
    # the sketch was made in batches of another shape, which round differently
    assert max(abs(each[1][0]["consistency"]) for each in (one, two)) < 1e-8
    read = sorted((file.name, file.stat().st_mtime_ns) for file in (tmp_path / "cache").rglob("*.safetensors"))
    assert built and read == built


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "form"), [("zero2", "residual"), ("zero3", "residual"), ("zero2", "delta"), ("zero3", "delta")]
)
def test_a_run_under_zero_is_resumed_from_its_pieces(alone, tmp_path, config, form):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    words += ["--config", TINY, "--deepspeed", ZERO2.replace("zero2", config), "--save_steps", "10"]
    words += ["--start_form", form]
    folder, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    whole = run(folder, *words, DS_ACCELERATOR="cpu")
    update, other = updates(alone[0])[0], updates(whole[0])[0]  # one process in residual form
    assert ((update - other).norm() / update.norm()).item() <= 2e-5
    assert all(tensor.numel() for tensor in load_file(checkpoints / "checkpoint-10" / "trained.safetensors").values())
    shutil.rmtree(checkpoints / "checkpoint-20")
    shutil.rmtree(folder / "adapter")
    write_json(folder / "run.json", read_json(folder / "run.json") | {"status": "running"})
    resumed = run(folder, *words, "--resume", DS_ACCELERATOR="cpu")
    same(whole, resumed)
    assert all(torch.equal(tensor, resumed[0][name]) for name, tensor in whole[0].items())


def two_machines(folder, *words, second=(), **where):
    """Two launchers on this machine act as two machines, each with its own cache and output folder. Returns (status, output,
    errors) for each; `second`: options of the second one only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    machines = [
        begin(folder / rank, *ONE, *words, *more, **where, NODE_RANK=rank, BA_LORA_CACHE=str(folder / f"cache{rank}"))
        for rank, more in (("0", ()), ("1", second))
    ]
    try:
        outputs = [machine.communicate(timeout=1000) for machine in machines]
    finally:
        for machine in machines:
            if machine.poll() is None:  # the other one failed, and this one would wait for it
                os.killpg(machine.pid, signal.SIGKILL)
    return [(machine.returncode, *output) for machine, output in zip(machines, outputs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
@pytest.mark.parametrize("words", [(), ("--deepspeed", ZERO2)], ids=["ddp", "zero2"])
def test_two_machines_that_share_no_folder_train_as_one_process(alone, tmp_path, launcher, words):
    (tmp_path / "hosts").write_text("first slots=1\nsecond slots=1\n")
    where = {"HOSTFILE": str(tmp_path / "hosts")} if launcher == "deepspeed" else {"NPROC": "1", "NNODES": "2"}
    first, second = two_machines(tmp_path, *words, LAUNCHER=launcher, **where)
    assert (first[0], second[0]) == (0, 0), first[2][-3000:] + second[2][-3000:]
    same(alone, result(tmp_path / "0"))
    assert json.loads((tmp_path / "0" / "run.json").read_text())["processes"] == 2
    assert json.loads((tmp_path / "0" / "eval" / "gsm8k" / "score.json").read_text())["n"] == 4
    assert not (tmp_path / "1").exists() and "n = 4" in first[1] and "n = 4" not in second[1]


@pytest.mark.slow
def test_machines_with_different_data_are_refused(tmp_path):
    two = two_machines(tmp_path, second=("--data", "tinymath:train:1"), NPROC="1", NNODES="2")
    assert [machine[0] for machine in two] == [2, 2] and not (tmp_path / "0" / "run.json").exists()
    assert "error: the processes do not agree on data; give every machine the same" in two[0][2] + two[1][2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "deepspeed.launcher.runner", "--no_local_rank", "--num_accelerators", "2"],
        ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    ],
    ids=["deepspeed", "accelerate"],
)
def test_other_launchers_train_the_same(alone, tmp_path, launcher):
    two = run(tmp_path / "two", sys.executable, *launcher, "train.py", "--config", TINY, DS_ACCELERATOR="cpu")
    same(alone, two)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_launched_run_that_is_stopped_writes_its_checkpoint_and_continues(alone, tmp_path, launcher, number):
    folder, where = tmp_path / "run", {"NPROC": "2", "LAUNCHER": launcher}
    process = begin(folder, *ONE, **where)
    while process.poll() is None and not (
        (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size
    ):
        time.sleep(0.1)
    os.killpg(process.pid, number)  # as a terminal does
    errors = process.communicate(timeout=500)[1]
    assert process.returncode == 75, errors[-3000:]
    assert errors.count("stopped: ") == 1 and errors.count("Traceback") == 0
    (checkpoint,) = checkpoints.saved(folder / "checkpoints")
    assert checkpoints.flaw(checkpoint) is None and not (folder / "eval").exists()
    same(alone, run(folder, *ONE, "--resume", **where))
