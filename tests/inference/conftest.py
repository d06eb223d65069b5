"""Twelve random prompts, which any backend can be asked."""

import random

import pytest


@pytest.fixture(scope="module")
def prompts():
    chance = random.Random(0)
    return [[chance.randrange(3, 30) for _ in range(chance.randrange(2, 40))] for _ in range(12)]
