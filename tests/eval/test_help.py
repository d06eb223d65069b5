"""--help answers at once: it imports none of the libraries that take seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from eval.all import BENCHMARKS

ROOT = Path(__file__).parents[2]
COMMANDS = [
    *(row.module for row in BENCHMARKS.values()),
    "eval.glue",
    "eval.gluex",
    "eval.all",
    "train",
    "ba_lora.experiments",
]
SLOW = {"torch", "transformers", "datasets", "sklearn", "scipy", "pandas", "matplotlib"}
SCRIPT = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("IMPORTED", end.code, *sys.modules)
"""


@pytest.mark.parametrize("module", COMMANDS)
def test_help_imports_no_large_library(module):
    words = [sys.executable, "-c", SCRIPT, module]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    text, _, last = said.partition("IMPORTED ")
    status, *imported = last.split()
    assert status == "0" and "usage: " in text
    assert SLOW & set(imported) == set()
