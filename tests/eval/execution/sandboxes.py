"""Bubblewrap for the tests that need it."""

import pytest

from ba_lora.errors import UserError
from eval.execution import sandbox
from tests.system import find_or_install


def box_or_skip() -> sandbox.Box:
    """The sandbox. In CI, as root, bubblewrap is installed for it; elsewhere the test is skipped, naming the command to run."""
    find_or_install(("bwrap",), "bubblewrap")
    sandbox._bubblewrap.cache_clear()
    try:
        return sandbox.find_box()
    except UserError as error:
        pytest.skip(str(error))
