"""A run that is stopped after its first step, the same run finished, and changes of their inputs."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from ba_lora.errors import Stopped
from ba_lora.training.command_line import parse
from ba_lora.training.run import train

GENERATION = ["--model", "M", "--data", "d.jsonl", "--template", "plain", "--max_length", "96", "--rank", "2"]
SHORT = ["--output_dir", "run", "--max_steps", "3", "--effective_batch_size", "4", "--micro_batch_size", "2"]
SHORT += ["--progress", "false", "--use_cpu"]


class StopAfterTheFirstStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **objects):
        if state.global_step == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def write_lines(file, rows):
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(count=8, what="is"):
    return [{"question": f"What {what} {i} + {i}?", "answer": str(2 * i)} for i in range(count)]


def begin(words, home):
    """In the folder `home`, create run/, stopped after step 1, and done/, the same run finished."""
    before = os.getcwd()
    os.chdir(home)
    try:
        with pytest.raises(Stopped):
            train(parse([*words, *SHORT]), callbacks=[StopAfterTheFirstStep()])
        shutil.copytree("run", "done")
        train(parse([*words, *SHORT, "--resume", "--output_dir", "done"]))
    finally:
        os.chdir(before)
    return home


def change_one_value(file, name):
    """Change one number of one tensor in its last bits, avoiding those that a sample would read."""
    tensors = load_file(file)
    flat = tensors[name].view(-1)
    flat[1] = torch.nextafter(flat[1], torch.tensor(9.0))
    save_file(tensors, file, metadata={"format": "pt"})


def edit_json(file, edit):
    content = json.loads(Path(file).read_text())
    edit(content)
    Path(file).write_text(json.dumps(content))


def swap_two_tokens(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    one, two = "a", "e"
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
