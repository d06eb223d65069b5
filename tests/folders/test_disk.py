"""A disk that is full or cannot be written: the message names the folder that is meant, before long work where possible."""

import errno
import signal
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from ba_lora.data import cache as samples_cache
from ba_lora.data.formats import exchange
from ba_lora.data.samples import Samples
from ba_lora.data.templates import TEMPLATES
from ba_lora.errors import RunFailure, UserError
from ba_lora.folders.disk import cached, refuse_unwritable, writing
from ba_lora.training import teacher_cache
from ba_lora.training.interruptions import explained
from tests.common import ROOT, collate, ragged_samples, small_llama

ERRORS = {
    OSError(errno.ENOSPC, "No space left on device"): "no space is left on the disk",
    OSError(errno.EDQUOT, "Disk quota exceeded"): "no space is left on the disk",
    SafetensorError("I/O error: No space left on device (os error 28)"): "no space is left on the disk",
    OSError(errno.EROFS, "Read-only file system"): "Read-only file system",
    OSError(errno.EACCES, "Permission denied"): "Permission denied",
}


def raising(error):
    def write(*words, **options):
        raise error

    return write


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_what_a_cache_cannot_write_names_the_cache_and_not_the_run(tmp_path, error):
    run, cache = tmp_path / "run", tmp_path / "cache"
    with (
        pytest.raises(RunFailure) as caught,
        explained(lambda: "before step 1", run),
        writing("the cache of x", cache, "name another"),
    ):
        raise error
    told = str(caught.value)
    assert told.startswith(f"the cache of x {cache} cannot be written: {ERRORS[error]}")
    assert told.endswith("or name another") and str(run) not in told


def test_another_error_of_the_block_is_left_as_it_is(tmp_path):
    for error in (OSError("the tokenizer is odd"), SafetensorError("header too short"), RuntimeError("shape")):
        with pytest.raises(type(error), match=str(error)), writing("x", tmp_path, "y"):
            raise error


def test_a_full_disk_of_the_samples_cache_is_named(tmp_path, monkeypatch, tiny_tokenizer):
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "small"))
    monkeypatch.setattr(Samples, "save", raising(OSError(errno.ENOSPC, "No space left on device")))
    conversations = [exchange("q", "a")]
    with pytest.raises(RunFailure, match=rf"the cache of samples {tmp_path}/small/samples cannot .* set BA_LORA_CACHE"):
        samples_cache.load_samples(tiny_tokenizer, TEMPLATES["plain"], conversations, 32)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunFailure, match="the cache of samples .*Not a directory, or set BA_LORA_CACHE"):
        samples_cache.load_samples(tiny_tokenizer, TEMPLATES["plain"], conversations, 32)


def test_a_full_disk_of_the_teacher_cache_is_named(tmp_path, monkeypatch):
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(teacher_cache, "save_tensors", raising(full))
    samples, options = (
        Samples.from_list(ragged_samples(3)),
        {"temperature": 1.0, "dtype": "float32", "collate": collate},
    )
    with pytest.raises(
        RunFailure, match=rf"--teacher_cache {tmp_path}/tc cannot be written: no space is left .*{tmp_path}/tc"
    ):
        teacher_cache.prepare(tmp_path / "tc", small_llama(), samples, "hash", **options)


def test_a_folder_that_cannot_be_written_is_refused_and_one_that_can_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", "/proc/none/run"):
        with pytest.raises(UserError, match=rf"--teacher_cache {place} cannot be written \(.*\); name another folder"):
            refuse_unwritable(place, "--teacher_cache")
    refuse_unwritable(tmp_path / "a" / "b")
    refuse_unwritable(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_training_refuses_an_unwritable_output_before_it_imports_torch():
    code = (
        "import sys, runpy; sys.argv[1:] = ['--output_dir', '/proc/none/run']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"] and "--output_dir /proc/none/run cannot be written" in done.stderr


def test_a_cache_removes_what_a_killed_process_left_of_it_and_nothing_else(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from ba_lora.files import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as place:\n"
        "    (place / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for name in ("a", "b"):
        killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], cwd=ROOT)
        assert killed.returncode == -signal.SIGKILL
    (tmp_path / ".a.notes").write_text("mine")
    assert len(list(tmp_path.glob(".a.*.tmp"))) == 1
    with cached(tmp_path / "a", "a"):
        left = {path.name for path in tmp_path.iterdir()}
    assert not any(name.startswith(".a.") and name.endswith(".tmp") for name in left)
    assert {".a.notes", ".a.lock"} < left and len(list(tmp_path.glob(".b.*.tmp"))) == 1
