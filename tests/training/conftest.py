"""Runs that several files resume or compare with: a stopped and a finished one, with a copy of both, and an uninterrupted one."""

import shutil

import pytest

from ba_lora.tiny import MODEL_DIR
from tests.common import small_llama
from tests.training.lives import ADAPTIVE, life
from tests.training.resuming import GENERATION, begin, rows, write_lines


@pytest.fixture(scope="session")
def generation(tmp_path_factory):
    home = tmp_path_factory.mktemp("generation")
    small_llama(vocab_size=768).save_pretrained(home / "M")
    for file in MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, home / "M")
    write_lines(home / "d.jsonl", rows())
    return begin(GENERATION, home)


@pytest.fixture
def here(tmp_path, monkeypatch, request):
    """A copy of a fixture's folder, as the current directory."""
    home = tmp_path / "home"

    def copy(name):
        shutil.copytree(request.getfixturevalue(name), home)
        monkeypatch.chdir(home)
        return home

    return copy


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert life(folder, *ADAPTIVE)[0] == 0
    assert not (folder / "checkpoints").exists()
    return folder
