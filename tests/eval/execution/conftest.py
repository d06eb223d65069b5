"""The sandbox, found or installed once for all tests."""

import pytest

from tests.eval.execution.sandboxes import box_or_skip


@pytest.fixture(scope="session")
def box():
    return box_or_skip()
