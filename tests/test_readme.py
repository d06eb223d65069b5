"""The code and commands of the README and of docs/start.md work as they stand; commands that take minutes run with less data.
The files that the pages name exist."""

import itertools
import json
import os
import re
import shlex
from pathlib import Path

import peft
import pytest
import torch
import transformers

import ba_lora
from ba_lora.experiments.matrix import read_experiment
from ba_lora.experiments.results import read_results
from ba_lora.experiments.tables.build import build
from ba_lora.experiments.tables.formats import render
from tests.common import collate, command, ragged_samples, small_llama

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
START = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def commands(text: str) -> list[str]:
    return [line for block in blocks(text, "sh") for line in block.splitlines()]


PEFT_LOAD, LIBRARY = blocks(README, "python")
(STOCK,) = blocks(START, "python")

# Options that shorten a command, by its beginning. Commands that are not listed run as they are.
SHORT = {
    "NPROC=8 sh scripts/ba-lora.sh": ["--dry_run"],
    "sh scripts/ba-lora.sh --seeds": ["--help"],
    "sh scripts/ba-lora.sh configs/nlg/llama": [],
    "sh scripts/ba-lora.sh configs": ["--limit", "64", "--eval_limit", "8"],
    "sh scripts/ba-lora.sh": ["--help"],
    "python train.py --model": ["--rank", "4"],
    "python train.py": ["--limit", "64"],
    "ba-lora train": ["--rank", "4"],
    "ba-lora chat": ["--max_new_tokens", "32"],
    "python -m eval.all": [
        *("--benchmarks", "gsm8k", "--data", "gsm8k=tinymath:test", "--limit", "8", "--max_new_tokens", "96"),
    ],
    "python -m eval.gsm8k --model": ["--limit", "8", "--max_new_tokens", "96"],
    "python -m ba_lora.chat": ["--max_new_tokens", "32"],
    "python -m ba_lora.experiments run": ["--methods", "lora", "--seeds", "1"],
    "python -m ba_lora.experiments tune": ["--help"],
    "python -m ba_lora.tiny.pretrain": ["--steps", "2", "--batch_size", "16"],
}


def test_the_first_page_is_short_and_there_are_commands_to_check():
    assert len(README.splitlines()) <= 150
    assert len(commands(README)) >= 9 and len(commands(START)) >= 9
    assert all(len(snippet.splitlines()) <= 4 for snippet in (PEFT_LOAD, LIBRARY, STOCK))


@pytest.mark.parametrize("snippet", [LIBRARY, STOCK], ids=["our trainer", "stock trainer"])
def test_library_snippets_train_and_export(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {
        "ba_lora": ba_lora,
        "transformers": transformers,
        "model": small_llama(),
        "data": ragged_samples(8),
        "dataset": ragged_samples(8),
        "collator": collate,
        "args": transformers.TrainingArguments(
            output_dir="out",
            max_steps=2,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            remove_unused_columns=False,
        ),
    }
    exec(snippet, names)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_the_peft_snippet_opens_an_adapter_on_the_original_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_llama().save_pretrained("MODEL")
    adapted = ba_lora.attach(small_llama(), "ba-lora", rank=4, alpha=4)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name and parameter.requires_grad:
                parameter += 0.1
    ba_lora.export(adapted, "runs/mine/adapter")
    names = {"transformers": transformers, "peft": peft}
    exec(PEFT_LOAD, names)
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected, before = adapted.eval()(tokens).logits, small_llama().eval()(tokens).logits
        assert torch.allclose(names["model"].eval()(tokens).logits, expected, atol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)


def test_the_table_is_that_of_the_committed_results():
    file = ROOT / "configs/experiments/nlg-main-embedded.yaml"
    experiment = read_experiment(file, "none")
    text = render(build(experiment, read_results(experiment, ROOT / "results")), "markdown")
    ours, theirs = (rows(part) for part in (README.partition("<!-- of assets/")[2], text))
    columns = ours[0]
    assert len(ours) == 7 and "test %" in columns
    assert ours[2:] == [[dict(zip(theirs[0], line, strict=True))[name] for name in columns] for line in theirs[2:]]


def rows(text):
    """Cells of the first Markdown table of a text, line by line."""
    lines = itertools.takewhile(lambda line: line.startswith("|"), text[text.index("| ") :].splitlines())
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


@pytest.mark.parametrize("text", [README, pytest.param(START, marks=pytest.mark.slow)], ids=["README", "docs/start.md"])
def test_every_command_runs_in_the_order_of_the_page(text, tmp_path, monkeypatch):
    """One after another, because later ones read what earlier ones wrote. runs/ and my.jsonl are in a temporary folder."""
    rows = [{"prompt": f"Ann has {n} pens and buys {n + 1} more.", "response": str(2 * n + 1)} for n in range(32)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for line in commands(text):
        words = shlex.split(line, comments=True)
        words += next((extra for start, extra in SHORT.items() if line.startswith(start)), [])
        words = [re.sub(r"^(?:runs/|(?=my\.jsonl$))", f"{tmp_path}/", word) for word in words]
        words = ["tiny" if word == "MODEL" else word for word in words]
        with monkeypatch.context() as patch:
            while "=" in words[0]:
                patch.setenv(*words.pop(0).split("=", 1))
            if words == ["sh", "scripts/test.sh"]:  # this test is one of its tests
                continue
            if words[0] == "sh":  # scripts/ba-lora.sh only adds the set-up, which has a test of its own
                assert words[1] == "scripts/ba-lora.sh"
                kind = "run" if words[2].startswith("-") else "one"
                words = ["python", "-m", "ba_lora.experiments", kind, *words[2:]]
            if words[0] == "ba-lora":
                words = ["python", "-m", "ba_lora", *words[1:]]
            assert words[0] == "python"
            done = command(*words[1:], stdin="Tom has 3 boxes with 4 pens in each box. How many pens has he?\n")
        assert done.returncode == 0, f"{line}\n{done.stderr[-1500:]}"


PAGES = ["README.md", "CONTRIBUTING.md", "configs/README.md", "tests/README.md"]
PAGES += sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if page.name != "LOG.md")  # old names
NAMED = re.compile(r"(?<![\w/.<-])(?:assets|ba_lora|configs|docs|eval|scripts|tests)/[\w./*=-]*[\w/*]")
LINKED = re.compile(r"\]\(([^)#:]+)\)")  # to a file, from the page's folder


def is_made(name: str) -> bool:
    """assets/NAME is made from results/NAME; if those are missing, its page says where it will be."""
    folder, _, rest = name.partition("/")
    return folder != "assets" or (ROOT / "results" / rest.partition("/")[0]).is_dir()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page):
    text, folder = (ROOT / page).read_text(encoding="utf-8"), Path(page).parent
    names = {*NAMED.findall(text), *(os.path.normpath(folder / link) for link in LINKED.findall(text))}
    assert names
    missing = sorted(name for name in names if is_made(name) and not any(ROOT.glob(name)))
    assert not missing
