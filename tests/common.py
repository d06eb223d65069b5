"""Helpers for many tests: a small random model, ragged samples, a batch, a finished run folder, a command run in this process."""

import contextlib
import io
import os
import runpy
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from ba_lora.data.collator import PadRight
from ba_lora.data.templates import TEMPLATES
from ba_lora.files import write_json
from ba_lora.training.command_line import as_config, parse
from ba_lora.training.model_numbers import read_numbers

ROOT = Path(__file__).parent.parent
VOCABULARY = 97
# Sizes of a small model, for any of transformers' configs.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SMALL = {**SIZES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def small_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A random Llama of 2 layers, small enough for hundreds of steps per second."""
    options = {**SIZES, "max_position_embeddings": 128, "tie_word_embeddings": False, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**options | changes)).eval()


def small_classifier(name: str, seed: int = 0, **changes):
    """A random classifier with 3 outputs, with the class and flags of a model of configs/models."""
    numbers = dict(read_numbers(name)[0])
    sizes = {**SMALL, "max_position_embeddings": 64, "num_labels": 3}
    if name == "gpt2-xl":
        sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "num_labels": 3}
        sizes["pad_token_id"] = 0
    config = AutoConfig.for_model(numbers.pop("model_type"), **numbers | sizes | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config)


def classifier_batch(rows: int, length: int) -> dict[str, torch.Tensor]:
    """Random samples for `small_classifier`, the first with a padding token."""
    ids = torch.randint(3, VOCABULARY, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(rows) % 3}


def move(model) -> None:
    """Move the trained tensors away from their start, so that every term has a gradient."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def ragged_samples(count: int, seed: int = 0) -> list[dict]:
    """Samples of different lengths: a prompt without labels, then 1 to 9 trained tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    samples = []
    for _ in range(count):
        prompt, response = draw(2, 9), draw(1, 10)
        ids = torch.randint(3, VOCABULARY, (prompt + response,), generator=generator).tolist()
        samples.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return samples


class TokenIds:
    """The parts of a tokenizer that PadRight needs."""

    pad_token_id = 0
    eos_token_id = 2


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    return PadRight(TokenIds())(samples)


def finished_run(folder: Path, *, model: str = "someone/base", saved: str = "adapter", **changes) -> Path:
    """A run folder as `train` leaves it, without the training. `changes`: options of the run."""
    words = ["--output_dir", str(folder), "--model", model, "--rank", "4", "--template", "alpaca"]
    arguments = replace(parse(words), **changes)
    record = {
        "status": "finished",
        "model": model,
        "template": vars(TEMPLATES[arguments.template]),
        "config": as_config(arguments),
        "objective": vars(arguments.objective()),
        "data": {"read": 20, "kept": 10, "no_response": 10, "truncated": 0, "hash": "e" * 64},
        "trained_parameters": 1234,
        "processes": 2,
        "steps": 7,
        "train_seconds": 3.25,
        "versions": {"ba-lora": "0.0.1"},
    }
    write_json(folder / "run.json", record)
    (folder / saved).mkdir()
    if saved == "adapter":
        config = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "k_proj"], base_model_name_or_path=model)
        config.save_pretrained(folder / saved)
        save_file({"lora_A": torch.zeros(2)}, folder / saved / "adapter_model.safetensors")
    return folder


def command(*words: str, cwd: Path = ROOT, stdin: str = "") -> subprocess.CompletedProcess:
    """`python WORDS` (a file of the repository, or -m and a module), run in this process, because a new one would need seconds for
    its imports. It ends with SystemExit, as under run_cli."""
    start, (name, *arguments) = runpy.run_path, words
    if name == "-m":
        start, (name, *arguments) = runpy.run_module, arguments
    else:
        name = str(ROOT / name)
    out, errors, before, status, threads = io.StringIO(), io.StringIO(), os.getcwd(), 0, torch.get_num_threads()
    os.chdir(cwd)
    try:
        with (
            mock.patch("sys.argv", [name, *arguments]),
            mock.patch("sys.stdin", io.StringIO(stdin)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", ".*found in sys.modules after import", RuntimeWarning)
            start(name, run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    return subprocess.CompletedProcess(words, status, out.getvalue(), errors.getvalue())
