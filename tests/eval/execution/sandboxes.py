"""Bubblewrap for the tests that need it, a program that passes in it, and the processes that it starts."""

from pathlib import Path

import pytest

from ba_lora.errors import UserError
from eval.execution import sandbox
from eval.execution.sandbox import Program
from tests.system import find_or_install

TESTS = "assert f(2) == 4\nassert f(3) == 9"
GOOD = Program("def f(x):\n    return x * x", TESTS, ("f",))


def box_or_skip() -> sandbox.Box:
    """The sandbox. In CI, as root, bubblewrap is installed for it; elsewhere the test is skipped, naming the command to run."""
    find_or_install(("bwrap",), "bubblewrap")
    sandbox._bubblewrap.cache_clear()
    try:
        return sandbox.find_box()
    except UserError as error:
        pytest.skip(str(error))


def processes() -> dict[int, str]:
    """Every process on the machine that runs `eval.execution.inside`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"inside.py" in command:
            found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found
