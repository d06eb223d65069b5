"""--help answers at once: it imports none of the libraries that take seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*ROOT.glob("*.py"), *(ROOT / "ba_lora").rglob("*.py"), *(ROOT / "eval").rglob("*.py")]
COMMANDS = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for file in FILES
    if "run_cli(main)" in file.read_text(encoding="utf-8")
)
SLOW = {"torch", "transformers", "peft", "datasets", "sklearn", "scipy", "pandas", "matplotlib"}
SCRIPT = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("IMPORTED", end.code, *sys.modules)
"""


def test_the_commands_are_found():
    assert len(COMMANDS) > 18 and {"train", "eval.gsm8k", "ba_lora.experiments", "ba_lora.chat"} <= {*COMMANDS}


@pytest.mark.parametrize("module", COMMANDS)
def test_help_imports_no_large_library(module):
    words = [sys.executable, "-c", SCRIPT, module]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    text, _, last = said.partition("IMPORTED ")
    status, *imported = last.split()
    assert status == "0" and "usage: " in text
    assert SLOW & set(imported) == set()
