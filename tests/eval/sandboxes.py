"""Bubblewrap for the tests that need it."""

import os
import shutil
import subprocess

import pytest

from ba_lora.errors import UserError
from eval import sandbox


def box_or_skip() -> sandbox.Box:
    """The sandbox; as root in CI bubblewrap is installed for it, elsewhere the test is skipped with the command to run."""
    if not shutil.which("bwrap") and os.geteuid() == 0 and os.environ.get("CI") == "true" and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-qq", "bubblewrap"], capture_output=True, check=False)
        sandbox._bubblewrap.cache_clear()
    try:
        return sandbox.find_box()
    except UserError as error:
        pytest.skip(str(error))
