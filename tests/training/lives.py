"""Lives of a run: train.py itself in a separate process, forked so that the libraries are imported only once.

The test, never the product, installs what kills it.
"""

import json
import logging
import os
import runpy
import signal
import sys
import traceback

import torch
from transformers.utils.logging import disable_progress_bar

from ba_lora.training import checkpoints
from tests.processes import ROOT, default_signals

SHORT = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--progress", "false", "--rank", "4"]
SHORT += ["--limit", "22", "--effective_batch_size", "4", "--micro_batch_size", "2", "--max_length", "96"]
SAME = ("step", "loss", "task", "consistency", "diversity", "spectrum", "lambda1", "lambda2", "lambda3", "lr", "tokens")
ADAPTIVE = ["--epochs", "2", "--lambda1_schedule", "adaptive", "--logging_steps", "3", "--limit", "14"]  # 8 steps


def life(folder, *words, before=lambda: None, resume=True):
    """(exit status, stderr) of train.py; `before` runs in its process."""
    said = folder.with_suffix(".txt")
    child = os.fork()
    if child == 0:
        status = 99
        try:
            with open(said, "w") as file, open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1), os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            disable_progress_bar()
            torch.set_num_threads(1)  # the parent's threads do not exist here
            logging.getLogger().handlers.clear()  # pytest's
            default_signals()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Python's default at start
            before()
            sys.argv = ["train.py", *SHORT, "--output_dir", str(folder), *(["--resume"] if resume else []), *words]
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.read_text()


def on_call(owner, name, number, action=lambda: os.kill(os.getpid(), signal.SIGKILL)):
    """A `before` that runs `action` at the number-th call (from 1) of owner.name, before the call does its work."""

    def put():
        original, calls = getattr(owner, name), []

        def replaced(*arguments, **options):
            calls.append(1)
            if len(calls) == number:
                action()
            return original(*arguments, **options)

        setattr(owner, name, replaced)

    return put


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[row[name] for name in SAME] for row in rows]


def weights(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def assert_same(folder, whole):
    assert metrics(folder) == metrics(whole)
    assert weights(folder) == weights(whole)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert not [path for path in folder.rglob(".*")]  # no temporary name is left


def steps_in(folder):
    return sorted(checkpoints.step_of(path) for path in checkpoints.saved(folder / "checkpoints"))
