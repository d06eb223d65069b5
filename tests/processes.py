"""Commands that tests send signals to: started with an interactive shell's signal dispositions, leaving nothing behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
LIMIT = 300  # seconds: a guard against deadlock, not a measure
SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
GROUP = pytest.mark.parametrize("group", [False, True], ids=["parent", "group"])
SAID = {signal.SIGINT: "error: interrupted\n", signal.SIGTERM: "error: ended by SIGTERM\n"}
SLEEPS = """
import os, pathlib, time
pathlib.Path(os.environ["SLEEPS"]).joinpath(str(os.getpid())).touch()
while True:
    time.sleep(60)
"""


def default_signals() -> None:
    """For `preexec_fn`: tests may run as a script's background job, where SIGINT is ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def start(*words, ignored=(), **options) -> subprocess.Popen:
    """A command in its own process group, as a shell starts it; it ignores the signals `ignored`, as under nohup."""

    def prepare():
        default_signals()
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    environment = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("env", {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        words, env=environment, start_new_session=True, preexec_fn=prepare, **{"cwd": ROOT} | pipes | options
    )


def wait_until(happened, process=None, pause=0.01) -> None:
    """Wait until `happened()`; raises AssertionError if `process` ends first."""
    end = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < end, "nothing happened"
        assert process is None or process.poll() is None, f"ended before: {process.communicate()}"
        time.sleep(pause)


@contextlib.contextmanager
def orphans():
    """Inside the block, orphaned processes become children of this one, whatever their group and session → a function that
    returns those that are left."""
    prctl, before = ctypes.CDLL(None).prctl, {child.pid for child in psutil.Process().children()}
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def left(within=5.0):
        end = time.monotonic() + within  # killed processes take a moment to disappear
        while True:
            found = []
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if child.pid in before:
                        continue
                    if child.status() != psutil.STATUS_ZOMBIE:
                        found.append(" ".join(child.cmdline()))
                    elif child.ppid() == os.getpid():
                        with contextlib.suppress(ChildProcessError):
                            os.waitpid(child.pid, os.WNOHANG)
            if not found or time.monotonic() > end:
                return found
            time.sleep(0.02)

    try:
        yield left
    finally:
        for child in psutil.Process().children(recursive=True):
            if child.pid not in before:
                with contextlib.suppress(psutil.Error):
                    child.kill()
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def send(process, number, group=False):
    """Send the signal and wait for the end → (status, stderr)."""
    (os.killpg if group else os.kill)(process.pid, number)
    said = process.communicate(timeout=LIMIT)[1]
    return process.returncode, said


def sleeping(folder, library):
    """(an environment in which the import of `library` does not end, a function that returns the processes inside it)"""
    (folder / "libraries").mkdir()
    (folder / "libraries" / f"{library}.py").write_text(SLEEPS)
    (folder / "asleep").mkdir()
    environment = {"PYTHONPATH": str(folder / "libraries"), "SLEEPS": str(folder / "asleep")}
    return environment, lambda: os.listdir(folder / "asleep")


def found(folder, name):
    """The files called `name` below a folder in which temporary folders come and go; rglob fails on those."""
    return [Path(place) / name for place, _, names in os.walk(folder) if name in names]


def lines_of(folder):
    return sum(file.read_bytes().count(b"\n") for file in found(folder, "metrics.jsonl"))
