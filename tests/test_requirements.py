"""The pinned requirements can be installed with every Python that pyproject.toml promises."""

import re
import subprocess
import sys

import pytest

from tests.common import ROOT

UNREACHABLE = ("error sending request", "Failed to fetch", "Could not connect", "network was disabled")


def resolve(requirements, lowest: str) -> str | None:
    """None if uv finds one set of versions for each Python from `lowest` on and each platform; otherwise its reason."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", lowest]
    done = subprocess.run([*command, str(requirements)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip(f"the registry cannot be reached: {done.stderr.strip().splitlines()[0]}")
    return done.stderr if done.returncode else None


@pytest.mark.slow
def test_the_requirements_resolve_for_every_promised_python():
    lowest = re.search(r'requires-python = ">=(\d+\.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert resolve(ROOT / "requirements.txt", lowest) is None


@pytest.mark.slow
def test_a_pin_that_the_lowest_python_cannot_install_is_noticed(tmp_path):
    (tmp_path / "requirements.txt").write_text("filelock==4.2.11\n")  # needs Python 3.11
    assert "Python>=3.11" in resolve(tmp_path / "requirements.txt", "3.10")
