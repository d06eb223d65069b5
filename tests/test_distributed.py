"""Two processes under torchrun equal one process on the same micro-batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def launch(folder, processes, accumulation, method):
    folder.mkdir()
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words += ["-m", "tests.two_processes", str(folder), str(accumulation), method]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.load(folder / "tensors.pt", weights_only=True), metrics


@pytest.mark.parametrize("method", ["ba-lora", "full"])
def test_two_processes_train_as_one(tmp_path, method):
    """20 steps of 4 micro-batches at learning rate 1e-3, all terms active: within 1e-5 of the update's norm."""
    one, metrics_one = launch(tmp_path / "one", 1, 4, method)
    two, metrics_two = launch(tmp_path / "two", 2, 2, method)
    assert torch.equal(one["start"], two["start"])
    update = (one["end"] - one["start"]).norm()
    assert update > 0.01
    assert ((one["end"] - two["end"]).norm() / update).item() <= 1e-5
    for a, b in zip(metrics_one, metrics_two, strict=True):
        for name in ("loss", "task", "consistency", "diversity", "spectrum", "lambda1", "lr", "tokens"):
            # abs: a KL near 0 is a small difference of float32 logarithms
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), (a["step"], name)
