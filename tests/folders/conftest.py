"""The folder of files to be damaged, and a copy of it."""

import shutil

import pytest

from tests.folders.damaged import make_home


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    make_home(home)
    return home


@pytest.fixture
def copied(home, tmp_path, monkeypatch):
    """A copy of the home, to be damaged."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "home/cache"))
    return tmp_path / "home"
