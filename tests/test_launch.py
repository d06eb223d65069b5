"""One launcher: what it starts, what it refuses, and that DeepSpeed on two processes trains as one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ba_lora import launch
from ba_lora.arguments import parse
from ba_lora.errors import UserError
from ba_lora.run import train

ROOT = Path(__file__).parent.parent
ZERO2 = str(ROOT / "configs/deepspeed/zero2.json")
TINY = str(ROOT / "configs/nlg/tiny.yaml")


def command(monkeypatch, *words, **environment):
    for name in ("NPROC", "LAUNCHER", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = ["--config", TINY, "--output_dir", "somewhere", *words]
    made = launch.command(parse(words), words)
    assert made is None or (made[0] == sys.executable and made[-len(words) - 1 :] == [str(launch.TRAIN), *words])
    return made and made[2 : -len(words) - 1]


def test_one_process_needs_no_launcher_unless_deepspeed_does(monkeypatch):
    assert command(monkeypatch) is None
    assert command(monkeypatch, NPROC="1") is None
    alone = ["torch.distributed.run", "--nproc_per_node", "1", "--standalone"]
    assert command(monkeypatch, "--deepspeed", ZERO2) == alone


def test_the_environment_says_how_many_processes_and_machines(monkeypatch):
    assert command(monkeypatch, NPROC="2") == ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    assert command(monkeypatch, NPROC="2", LAUNCHER="deepspeed") == [
        "deepspeed.launcher.runner",
        "--no_local_rank",
        "--num_accelerators",
        "2",
    ]
    many = command(monkeypatch, NPROC="1", NNODES="2", NODE_RANK="1", MASTER_ADDR="first", MASTER_PORT="1234")
    assert many[:3] == ["torch.distributed.run", "--nproc_per_node", "1"]
    assert many[3:] == "--nnodes 2 --node_rank 1 --master_addr first --master_port 1234".split()


def test_processes_default_to_the_gpus_found(monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 2)
    assert command(monkeypatch)[:3] == ["torch.distributed.run", "--nproc_per_node", "2"]
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
        ({"NPROC": "1", "NNODES": "2", "LAUNCHER": "deepspeed"}, "use LAUNCHER=torchrun"),
    ],
)
def test_what_cannot_be_started_is_said_in_one_line(monkeypatch, environment, message):
    with pytest.raises(UserError, match=message) as raised:
        command(monkeypatch, **environment)
    assert "\n" not in str(raised.value)


def test_deepspeed_without_a_launcher_or_its_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    words = ["--config", TINY, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="--deepspeed needs a launcher, even for one process: torchrun"):
        train(parse([*words, "--deepspeed", ZERO2]))
    with pytest.raises(UserError, match="--deepspeed nowhere.json does not exist"):
        parse([*words, "--deepspeed", "nowhere.json"])
    zero3, broken = ZERO2.replace("zero2", "zero3"), tmp_path / "broken.json"
    with pytest.raises(UserError, match="--save_steps: a run under ZeRO-3 has no checkpoints yet"):
        parse([*words, "--deepspeed", zero3, "--save_steps", "5"])
    broken.write_text("{")
    with pytest.raises(UserError, match=r"--deepspeed .*broken\.json is no DeepSpeed config") as raised:
        parse([*words, "--deepspeed", str(broken), "--save_steps", "5"])
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def run(folder, *words, **environment):
    words = [*words, "--limit", "320", "--logging_steps", "1", "--progress", "false", "--output_dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return load_file(folder / "adapter" / "adapter_model.safetensors"), metrics, done.stdout


def same(one, two):
    for a, b in zip(one[1], two[1], strict=True):
        for name in ("loss", "task", "consistency", "diversity", "spectrum", "lambda1", "lambda3", "lr", "tokens"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), (a["step"], name)
    assert one[0].keys() == two[0].keys()
    for name, tensor in one[0].items():
        assert (tensor - two[0][name]).abs().max() <= 1e-4, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "alone", sys.executable, "train.py", "--config", TINY)


def test_zero_2_on_two_processes_trains_and_evaluates_as_one_process(alone, tmp_path):
    """The script's own path: launch, train under DeepSpeed, evaluate in the starting process."""
    one = [sys.executable, "-m", "ba_lora.experiments", "one", TINY, "--deepspeed", ZERO2, "--eval_limit", "4"]
    two = run(tmp_path / "zero2", *one, NPROC="2")
    same(alone, two)
    assert json.loads((tmp_path / "zero2" / "run.json").read_text())["processes"] == 2
    assert json.loads((tmp_path / "zero2" / "eval" / "gsm8k" / "score.json").read_text())["n"] == 4


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
