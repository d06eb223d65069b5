"""The parts of the device check that run other commands: the benchmark of a body, and train.py from its start to a score."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ..errors import RunFailure, UserError
from ..files import IMPORTS, PROJECT, read_json
from .__main__ import main as benchmark

CHECKPOINT = "checkpoints/checkpoint-*/trainer_state.json"


def steps(body: str, device: str, smoke: bool, folder: Path) -> dict:
    """The benchmark of one body: its sizes, the seconds of its start, and its results by contestant."""
    words = ["--body", body, "--device", device, "--output_dir", str(folder / "benchmark")]
    if smoke:
        words += ["--layers", "1", "--length", "16", "--batch", "2", "--repeats", "1", "--dtype", "float32"]
    try:
        benchmark(words)
    except (
        UserError
    ) as error:  # after everything was written: a contestant without memory, or without its package's help
        if not (folder / "benchmark" / "benchmark.json").is_file():
            raise
        print(error, file=sys.stderr)
    return read_json(folder / "benchmark" / "benchmark.json", "cases")["cases"][0]


def train_embedded(device: str, smoke: bool, folder: Path, deadline: float) -> dict:
    """train.py on the embedded model: killed after its first checkpoint, resumed, exported, and scored on problems."""
    total, save, problems = (6, 2, 3) if smoke else (40, 10, 50)
    run = folder / "run"
    words = ["train.py", "--config", str(PROJECT / "configs/nlg/tiny.yaml"), "--output_dir", str(run)]
    words += ["--max_steps", str(total), "--save_steps", str(save), "--logging_steps", "1"]
    words += ["--dtype", "float32" if smoke else "bfloat16", *(["--use_cpu"] if device == "cpu" else [])]
    words += ["--limit", "32", "--effective_batch_size", "4", "--micro_batch_size", "2"] if smoke else []
    environment = _environment(device, folder)
    killed = _killed_at_a_checkpoint(words, environment, run, deadline)
    printed = _finish([*words, "--resume"], environment, deadline)
    if "continues after step" not in printed:
        raise RunFailure(f"the resumed run did not continue from a checkpoint: {printed[-500:]}")
    record, lines = _run_of(run)
    evaluation = ["-m", "eval.gsm8k", "--model", "tiny", "--adapter", str(run), "--data", "tinymath:test"]
    began = time.perf_counter()
    _finish([*evaluation, "--limit", str(problems), "--output_dir", str(run / "eval")], environment, deadline)
    score = read_json(run / "eval" / "score.json", "score", "n")
    return {
        "steps": record["steps"],
        "killed_after_step": killed,
        "continued": next(line for line in printed.splitlines() if "continues after step" in line).rpartition(" ")[2],
        "dtype": record["config"]["dtype"],
        "loss": [lines[0]["loss"], lines[-1]["loss"]],
        "train_seconds": record["train_seconds"],
        "peak": lines[-1].get("peak_memory"),
        "score": score["score"],
        "problems": score["n"],
        "evaluation_seconds": time.perf_counter() - began,
    }


def train_body(body: str, device: str, smoke: bool, folder: Path, deadline: float) -> dict:
    """train.py's function on random weights of a body: the seconds of its steps, its start and its peak memory."""
    words = [
        "-m",
        "ba_lora.benchmark.train_body",
        str(folder),
        "--body",
        body,
        "--device",
        device,
        "--logging_steps",
        "1",
    ]
    if smoke:
        words += ["--max_steps", "2", "--dtype", "float32", "--micro_batch_size", "2", "--effective_batch_size", "2"]
        words += [
            "--max_length",
            "256",
            "--together",
            "1",
            "--rank",
            "4",
            "--init",
            "pissa_niter_2",
            "--learning_rate",
            "1e-4",
        ]
    else:
        words += ["--max_steps", "20", "--dtype", "bfloat16", "--micro_batch_size", "4", "--effective_batch_size", "4"]
        words += ["--max_length", "512", "--init", "pissa_niter_4"]
    began = time.perf_counter()
    _finish(words, _environment(device, folder), deadline)
    record, lines = _run_of(folder / "run")
    return {
        "body": body,
        "steps": record["steps"],
        "dtype": record["config"]["dtype"],
        "start_seconds": record["decomposition"]["seconds"],
        "train_seconds": record["train_seconds"],
        "whole_seconds": time.perf_counter() - began,
        "loss": [lines[0]["loss"], lines[-1]["loss"]],
        "last": {
            name: value
            for name, value in lines[-1].items()
            if name.startswith("seconds") or name == "tokens_per_second"
        },
        "peak": lines[-1].get("peak_memory"),
    }


def _environment(device: str, folder: Path) -> dict[str, str]:
    """This environment with a cache of its own, and without the GPUs if the CPU is checked."""
    own = {"BA_LORA_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, (str(IMPORTS), os.environ.get("PYTHONPATH"))))
    return os.environ | own | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})


def _killed_at_a_checkpoint(words: list[str], environment: dict, run: Path, deadline: float) -> int:
    """Start a training and kill it once it has written a checkpoint; return the step of the newest one."""
    log = run.parent / "killed.log"
    with open(log, "w", encoding="utf-8") as output:
        child = subprocess.Popen(
            [sys.executable, *words], cwd=PROJECT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while child.poll() is None and not any(run.glob(CHECKPOINT)):
                if time.monotonic() > deadline:
                    raise RunFailure("no checkpoint was written in the time that is left")
                time.sleep(0.02)
            ended = child.poll() is not None
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()
    if ended:
        raise RunFailure(f"the training ended before it could be killed: {log.read_text(encoding='utf-8')[-500:]}")
    return max(int(file.parent.name.rpartition("-")[2]) for file in run.glob(CHECKPOINT))


def _finish(words: list[str], environment: dict, deadline: float) -> str:
    """Run a command to its end and return what it printed. Raises RunFailure with its last words if it fails or takes too long."""
    left = max(deadline - time.monotonic(), 5)
    command = [sys.executable, *words]
    try:
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        raise RunFailure(f"{' '.join(words[:3])} was ended after {left:.0f} s, the time that was left") from None
    if done.returncode:
        raise RunFailure(f"{' '.join(words[:3])} ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _run_of(folder: Path) -> tuple[dict, list[dict]]:
    """(run.json, the lines of metrics.jsonl)."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return read_json(folder / "run.json", "steps"), [json.loads(line) for line in text.splitlines()]
