"""The launcher: what it starts and what it refuses, and the signals that it passes on."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ba_lora.errors import RunFailure, UserError
from ba_lora.experiments import single
from ba_lora.files import read_json
from ba_lora.training import deepspeed_config, launch
from ba_lora.training.command_line import parse
from ba_lora.training.run import train

ROOT = Path(__file__).parents[2]
ZERO2 = str(ROOT / "configs/deepspeed/zero2.json")
TINY = str(ROOT / "configs/nlg/tiny.yaml")


PLACES = ("NPROC", "LAUNCHER", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "HOSTFILE")


def command(monkeypatch, *words, **environment):
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = ["--config", TINY, "--output_dir", "somewhere", *words]
    made = launch.command(parse(words), words)
    assert made[0] == sys.executable and made[-len(words) - 1 :] == [str(launch.TRAIN), *words]
    return None if made[1] == "-u" else made[2 : -len(words) - 1]


def test_one_process_needs_no_launcher_unless_deepspeed_does(monkeypatch):
    assert command(monkeypatch) is None
    assert command(monkeypatch, NPROC="1") is None
    assert command(monkeypatch, "--deepspeed", ZERO2) is None  # there is nothing to divide
    alone = ["ba_lora.training.torchrun", "--nproc_per_node", "1", "--standalone"]
    for name in ("zero2-offload", "zero3-offload"):
        assert command(monkeypatch, "--deepspeed", ZERO2.replace("zero2", name)) == alone


def test_deepspeed_that_is_not_installed_is_refused_where_it_is_used(monkeypatch):
    monkeypatch.setattr(deepspeed_config, "find_spec", lambda name: None)
    assert command(monkeypatch, "--deepspeed", ZERO2) is None
    with pytest.raises(UserError, match="the package deepspeed is not installed; .* or add --deepspeed none"):
        command(monkeypatch, "--deepspeed", ZERO2, NPROC="2")


def test_the_environment_says_how_many_processes_and_machines(monkeypatch):
    assert command(monkeypatch, NPROC="2") == ["ba_lora.training.torchrun", "--nproc_per_node", "2", "--standalone"]
    assert command(monkeypatch, NPROC="2", LAUNCHER="deepspeed") == [
        "deepspeed.launcher.runner",
        "--no_local_rank",
        "--num_accelerators",
        "2",
    ]
    many = command(monkeypatch, NPROC="1", NNODES="2", NODE_RANK="1", MASTER_ADDR="first", MASTER_PORT="1234")
    assert many[:3] == ["ba_lora.training.torchrun", "--nproc_per_node", "1"]
    assert many[3:] == "--nnodes 2 --node_rank 1 --master_addr first --master_port 1234".split()


@pytest.fixture
def hosts(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# the nodes\nfirst slots=2\n\nsecond  slots=2 # the last\n")
    return str(file)


def test_a_host_file_says_the_machines_to_both_launchers(monkeypatch, hosts):
    torchrun = ["ba_lora.training.torchrun", "--nproc_per_node", "2", "--nnodes", "2"]
    second = "--node_rank 1 --master_addr first --master_port 29500".split()
    small = ("--micro_batch_size", "8")
    assert command(monkeypatch, *small, HOSTFILE=hosts, NODE_RANK="1") == torchrun + second
    deepspeed = ["deepspeed.launcher.runner", "--no_local_rank", "--hostfile", hosts]
    each = {"HOSTFILE": hosts, "LAUNCHER": "deepspeed"}
    assert command(monkeypatch, *small, NODE_RANK="1", **each) == [*deepspeed, "--no_ssh", *second]
    monkeypatch.setattr(launch.shutil, "which", lambda name: name)
    over_ssh = [*deepspeed, "--master_port", "1234", "--master_addr", "10.0.0.1"]
    assert command(monkeypatch, *small, MASTER_ADDR="10.0.0.1", MASTER_PORT="1234", **each) == over_ssh
    Path(hosts).write_text("here slots=2")
    assert command(monkeypatch, HOSTFILE=hosts) == torchrun[:3] + ["--standalone"]


def test_processes_default_to_the_gpus_found(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert command(monkeypatch, "--use_cpu") is None
    assert command(monkeypatch)[:3] == ["ba_lora.training.torchrun", "--nproc_per_node", "2"]
    assert command(monkeypatch, NPROC="1") is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NPROC": "3"}, "effective_batch_size 32 is not a multiple of --micro_batch_size 16 × 3 processes"),
        ({"NPROC": "1", "NNODES": "3", "MASTER_ADDR": "a"}, "16 × 3 processes"),
        ({"NPROC": "two"}, "NPROC is 'two'; give a whole number of at least 1"),
        ({"NPROC": "0"}, "NPROC is '0'"),
        ({"NPROC": "2", "LAUNCHER": "torchrum"}, "LAUNCHER 'torchrum' is not known, did you mean 'torchrun'"),
        ({"NPROC": "1", "NNODES": "2"}, "MASTER_ADDR is not set"),
        ({"NPROC": "1", "NNODES": "2", "MASTER_ADDR": "a"}, "2 machines and NODE_RANK is not set; give 0 on the first"),
        ({"NPROC": "1", "NNODES": "2", "MASTER_ADDR": "a", "NODE_RANK": "2"}, "NODE_RANK is 2 .* last one has 1"),
        ({"NPROC": "1", "NNODES": "2", "LAUNCHER": "deepspeed"}, "set HOSTFILE, or use LAUNCHER=torchrun"),
        ({"HOSTFILE": "nowhere"}, "HOSTFILE nowhere does not exist"),
    ],
)
def test_what_cannot_be_started_is_said_in_one_line(monkeypatch, environment, message):
    with pytest.raises(UserError, match=message) as raised:
        command(monkeypatch, **environment)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("first slots=2\nsecond\n", {}, "line 2 is 'second'; write 'HOST slots=N'"),
        ("first slots=0\n", {}, "line 1 is 'first slots=0'"),
        ("first slots=1\nfirst slots=1\n", {}, "line 2 is 'first slots=1'; .* each machine once"),
        ("# nothing\n", {}, "names no machine"),
        ("first slots=1\nsecond slots=2\n", {}, "different slots"),
        ("first slots=1\nsecond slots=1\n", {"NNODES": "3"}, "NNODES is 3 and HOSTFILE says 2; leave NNODES out"),
        ("first slots=1\nsecond slots=1\n", {"NPROC": "2"}, "NPROC is 2 and HOSTFILE says 1"),
        ("first slots=1\nsecond slots=1\n", {"LAUNCHER": "deepspeed"}, "pdsh, which is not installed"),
    ],
)
def test_a_host_file_that_cannot_be_used_is_said_in_one_line(monkeypatch, hosts, text, environment, message):
    Path(hosts).write_text(text)
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=message) as raised:
        command(monkeypatch, HOSTFILE=hosts, **environment)
    assert "\n" not in str(raised.value)


def test_only_the_first_machine_evaluates(monkeypatch, tmp_path):
    started, evaluated = [], []
    monkeypatch.setattr(launch, "start", lambda words, use_cpu: started.append(words))
    monkeypatch.setattr(single.eval.all, "main", evaluated.append)
    monkeypatch.setattr(single.eval.all, "check_data", lambda *names: None)
    monkeypatch.setattr(single, "write_card", lambda folder: None)
    for name, value in {"NPROC": "1", "NNODES": "2", "MASTER_ADDR": "first"}.items():
        monkeypatch.setenv(name, value)
    for rank, evaluations in (("1", 0), ("0", 1)):
        monkeypatch.setenv("NODE_RANK", rank)
        assert single.train_and_evaluate(TINY, ["--output_dir", str(tmp_path / "run")]) == 0
        assert len(evaluated) == evaluations and "--node_rank" in started[-1]
    assert not (tmp_path / "run").exists()


TRAINING = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(1)  # longer than subprocess.run gives a child after Ctrl-C
    pathlib.Path(sys.argv[1], "checkpoint").touch()
    sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""


def interrupt(monkeypatch, folder, number, status):
    """The exception of `start` when a signal arrives while a launcher's only process trains and ends with `status`."""
    (folder / "train.py").write_text(TRAINING)
    monkeypatch.setattr(launch, "TRAIN", folder / "train.py")
    monkeypatch.setenv("NPROC", "1")
    launcher = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-u', *sys.argv[1:]]).returncode)"

    def send():
        while not (folder / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    if signal.getsignal(number) == signal.SIG_IGN:  # as in a script's background job, where `start` leaves it ignored
        signal.signal(number, signal.SIG_DFL)
    sender, before = threading.Thread(target=send), signal.getsignal(number)
    sender.start()
    with pytest.raises(SystemExit) as raised:
        launch.start([sys.executable, "-c", launcher, str(folder / "train.py"), str(folder), str(status)])
    sender.join()
    assert signal.getsignal(number) == before
    return raised.value.code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_the_training_whose_end_is_waited_for(monkeypatch, tmp_path, number):
    assert interrupt(monkeypatch, tmp_path, number, 75) == 75
    assert (tmp_path / "checkpoint").exists()


def test_a_training_that_a_signal_ended_at_once_is_no_failed_one(monkeypatch, tmp_path):
    assert interrupt(monkeypatch, tmp_path, signal.SIGTERM, 1) == 128 + signal.SIGTERM


@pytest.mark.parametrize(("status", "kind"), [(1, RunFailure), (2, UserError)])
def test_a_launched_training_that_fails_ends_with_its_own_status(tmp_path, status, kind):
    (tmp_path / "fail.py").write_text(f"import sys; sys.exit({status})")
    words = ["-m", "ba_lora.training.torchrun", "--standalone", "--nproc_per_node", "2", str(tmp_path / "fail.py")]
    with pytest.raises(UserError, match=f"the training ended with status {status}; see its own error above") as raised:
        launch.start([sys.executable, *words])
    assert type(raised.value) is kind


def test_one_process_leaves_out_deepspeed_with_a_line_and_trains_as_without(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("RANK", raising=False)
    words = ["--config", TINY, "--limit", "32", "--max_steps", "1", "--rank", "2", "--progress", "false"]
    for name, more in (("with", ["--deepspeed", ZERO2]), ("without", [])):
        train(parse([*words, *more, "--output_dir", str(tmp_path / name)]))
    assert "zero2.json is not used: it divides the work of several processes, and this run has one" in caplog.text
    records = [read_json(tmp_path / name / "run.json") for name in ("with", "without")]
    assert [record["deepspeed"] for record in records] == [None, None]
    assert [record["config"]["deepspeed"] for record in records] == ["configs/deepspeed/zero2.json", None]
    adapters = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("with", "without")]
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())


def test_deepspeed_without_a_launcher_or_its_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    words = ["--config", TINY, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="--deepspeed needs a launcher, even for one process: torchrun"):
        train(parse([*words, "--deepspeed", ZERO2.replace("zero2", "zero2-offload")]))
    with pytest.raises(UserError, match="--deepspeed nowhere.json does not exist"):
        parse([*words, "--deepspeed", "nowhere.json"])
    zero3, broken = ZERO2.replace("zero2", "zero3"), tmp_path / "broken.json"
    with pytest.raises(UserError, match="--log_gradient_norms needs whole gradients, which ZeRO-3 cuts; use ZeRO-2"):
        parse([*words, "--deepspeed", zero3, "--log_gradient_norms"])
    broken.write_text("{")
    with pytest.raises(
        UserError, match=r"broken\.json is not valid JSON .*give --deepspeed a DeepSpeed config"
    ) as raised:
        parse([*words, "--deepspeed", str(broken), "--save_steps", "5"])
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()
