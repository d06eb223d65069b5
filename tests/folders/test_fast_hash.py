"""The fast hash with and without the package xxhash: both find damage, and neither calls the other's files damaged."""

import json
import logging

import pytest
import torch

from ba_lora.errors import DamagedFile
from ba_lora.folders import fast_hash
from ba_lora.folders.checksums import check_line, checked_line
from ba_lora.folders.tensor_files import load_tensors, save_tensors
from ba_lora.methods.decomposition import Decomposer

TENSORS = {"a": torch.arange(6.0)}
LINE = {"id": 3, "text": "x"}


@pytest.fixture(autouse=True)
def unwarned():
    fast_hash._warn.cache_clear()
    yield
    fast_hash._warn.cache_clear()


@pytest.fixture(params=["installed", "missing"])
def package(request, monkeypatch):
    if request.param == "missing":
        monkeypatch.setattr(fast_hash, "xxhash", None)
    return request.param


def test_values_are_stable_and_say_which_kind_they_are(package):
    state = fast_hash.new(b"ab")
    state.update(b"c")
    assert state.hexdigest() == fast_hash.new(b"abc").hexdigest() != fast_hash.new(b"abd").hexdigest()
    for value, digits in ((fast_hash.new(b"abc").hexdigest(), 32), (fast_hash.short(b"abc"), 16)):
        assert value.startswith(fast_hash.MARK) == (package == "missing")
        assert len(value.removeprefix(fast_hash.MARK)) == digits


def test_damage_is_found(package, tmp_path):
    line = checked_line(LINE)
    check_line(line, "line 1")
    with pytest.raises(DamagedFile, match="line 1 was altered"):
        check_line(line | {"text": "y"}, "line 1")
    file = tmp_path / "t.safetensors"
    save_tensors(TENSORS, file)
    assert torch.equal(load_tensors(file)["a"], TENSORS["a"])
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedFile, match="was altered"):
        load_tensors(file)


def test_what_the_other_kind_wrote_opens_with_one_warning(tmp_path, monkeypatch, caplog):
    file, line = tmp_path / "t.safetensors", checked_line(LINE)
    save_tensors(TENSORS, file)
    monkeypatch.setattr(fast_hash, "xxhash", None)
    with caplog.at_level(logging.WARNING):
        check_line(json.loads(json.dumps(line)), "line 1")
        assert torch.equal(load_tensors(file)["a"], TENSORS["a"])
    assert len(caplog.records) == 1 and "xxhash was installed, and this environment lacks it" in caplog.text


@pytest.mark.parametrize(
    ("recorded", "made", "is_different"),
    [("ab", "ab", False), ("ab", "cd", True), ("blake2b-ab", "blake2b-cd", True), ("ab", "blake2b-ab", False)]
    + [(None, "ab", True), ("", "ab", True), (True, False, True), (None, None, False)],
)
def test_only_hashes_of_one_kind_can_differ(recorded, made, is_different):
    assert fast_hash.differ(recorded, made) is is_different


def test_a_cache_of_decompositions_is_known_again(package, tmp_path):
    matrix = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert [Decomposer("pissa", 2, cache=tmp_path)(matrix)[1] for _ in range(2)] == [False, True]
