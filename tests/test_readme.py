"""The README's code and commands work as they stand; commands that take minutes run with less data. The files that the
pages name are there."""

import itertools
import os
import re
import shlex
from pathlib import Path

import pytest
import transformers

import ba_lora
from ba_lora.experiments.matrix import read_experiment
from ba_lora.experiments.results import read_results
from ba_lora.experiments.tables.build import build
from ba_lora.experiments.tables.formats import render
from tests.common import collate, command, ragged_samples, small_llama

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S) for line in block.splitlines()]

# What makes a command short, by its beginning. A command that is not listed here runs as it is.
SHORT = {
    "sh scripts/ba-lora.sh --seeds": ["--help"],
    "sh scripts/ba-lora.sh configs/nlg/llama": [],
    "sh scripts/ba-lora.sh configs": ["--limit", "64", "--eval_limit", "8"],
    "python train.py": ["--limit", "64"],
    "python -m eval.gsm8k --model": ["--limit", "8", "--max_new_tokens", "96"],
    "python -m ba_lora.chat": ["--max_new_tokens", "32"],
    "python -m ba_lora.experiments table": ["--help"],
    "python -m ba_lora.experiments tune": ["--help"],
    "python -m ba_lora.tiny.pretrain": ["--steps", "2", "--batch_size", "16"],
}


def test_there_are_snippets_and_commands_to_check():
    assert len(SNIPPETS) == 2 and len(COMMANDS) >= 9
    assert all(len(snippet.strip().splitlines()) <= 10 for snippet in SNIPPETS)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["our trainer", "stock trainer"])
def test_library_snippets_train_and_export(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {
        "ba_lora": ba_lora,
        "transformers": transformers,
        "model": small_llama(),
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


def test_every_command_runs_in_the_order_of_the_readme(tmp_path):
    """One after another, because later ones read what earlier ones wrote; runs/ is put aside into a temporary folder."""
    for line in COMMANDS:
        words = shlex.split(line)
        words += next((extra for start, extra in SHORT.items() if line.startswith(start)), [])
        words = [word.replace("runs/", f"{tmp_path}/", 1) if word.startswith("runs/") else word for word in words]
        if words[0] == "sh":  # scripts/ba-lora.sh only adds the set-up, which has a test of its own
            assert words[:2] == ["sh", "scripts/ba-lora.sh"]
            kind = "run" if words[2].startswith("-") else "one"
            words = ["python", "-m", "ba_lora.experiments", kind, *words[2:]]
        assert words[0] == "python"
        done = command(*words[1:])
        assert done.returncode == 0, f"{line}\n{done.stderr[-1500:]}"


PAGES = ["README.md", "configs/README.md", "tests/README.md"]
PAGES += sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if page.name != "LOG.md")  # old names
NAMED = re.compile(r"(?<![\w/.<-])(?:assets|ba_lora|configs|docs|eval|scripts|tests)/[\w./*=-]*[\w/*]")
LINKED = re.compile(r"\]\(([^)#:]+)\)")  # to a file, from the page's folder


def is_made(name: str) -> bool:
    """assets/NAME is made of results/NAME; where those are not there, its page says where it will be."""
    folder, _, rest = name.partition("/")
    return folder != "assets" or (ROOT / "results" / rest.partition("/")[0]).is_dir()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page):
    text, folder = (ROOT / page).read_text(encoding="utf-8"), Path(page).parent
    names = {*NAMED.findall(text), *(os.path.normpath(folder / link) for link in LINKED.findall(text))}
    assert names
    missing = sorted(name for name in names if is_made(name) and not any(ROOT.glob(name)))
    assert not missing
