"""Prompts that any backend can be asked, and the interpreter and adapters of the tests with a real vLLM."""

import random

import pytest

from tests.inference.vllm_results import export_adapters
from tests.inference.vllm_servers import python_or_skip


@pytest.fixture(scope="module")
def prompts():
    """Twelve random ones."""
    chance = random.Random(0)
    return [[chance.randrange(3, 30) for _ in range(chance.randrange(2, 40))] for _ in range(12)]


@pytest.fixture(scope="module")
def vllm_python():
    return python_or_skip()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """See `export_adapters`."""
    folder = tmp_path_factory.mktemp("adapters")
    export_adapters(folder)
    return folder
