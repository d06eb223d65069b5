"""Runs untrusted programs: each in its own sandbox, judged by a checker in another one.

`run` takes jobs, each a program and the tests of its functions, and reports for each whether the end of the tests was reached.
The program and the checker are two processes that exchange plain values and calls over pipes (`eval.execution.inside`). A job whose
tests need more than values (the program's own classes) runs in one process, and its verdict is weaker: see below.

With bubblewrap each process has a fresh interpreter in its own user, mount, pid, network, ipc and uts namespaces: no
network, no other process, no /proc, no environment, no open files, read-only standard and shared libraries, no installed
package, and an empty, writable folder in memory. It cannot start a process or another thread (a system call filter on x86-64 and
aarch64, the limit on processes elsewhere), so its limits on CPU time and memory limit everything it does. At the end
everything in it is killed.

Not protected from: faults of the kernel or of bubblewrap; a program that has memorised the answers; a program that uses up its
limits, once per task; a program that fills its folder with a million empty files, folders or links, which take up to a gigabyte of
kernel memory until it ends; side channels, such as how busy the machine is. In one process a program that tries can forge its
verdict, and an object of its own can claim to equal anything.

Without bubblewrap, which `unsafe` must allow: the same processes in their own process group and temporary folder, with
the same limits, but with your files, your network and your rights; a process that leaves its group may survive. Without a
filter, the limit on processes counts all of yours, and does not apply to root.
"""

import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ba_lora.errors import UserError

from .system_calls import system_call_filter

INSIDE = Path(__file__).with_name("inside.py")
VALUES = INSIDE.with_name("values.py")  # what inside.py imports
STATUSES = ("passed", "failed", "error", "ended", "timeout")


class Limits(NamedTuple):
    """Limits of one process; `wall` covers program and checker together."""

    cpu: int = 10  # seconds
    wall: float = 20.0  # seconds
    memory: int = 1 << 30  # bytes of address space
    files: int = 16 << 20  # bytes per file; the folder holds the default in total
    output: int = 16 << 20  # bytes per result


class Program(NamedTuple):
    """A program and the tests that it must pass.

    source: the program, executed as a module. names: its functions that the tests call. setup: code of the benchmark that
    initialises the tests' namespace. tests: executed last. one_process: program, setup and tests share a namespace.
    """

    source: str
    tests: str
    names: tuple[str, ...] = ()
    setup: str = ""
    one_process: bool = False


class Result(NamedTuple):
    """passed: the tests' end was reached. failed: an assertion was false. error: an exception ended the tests. ended: the program's
    process did not answer (it hit a limit or exited). timeout: the wall time was up."""

    status: str
    detail: str
    seconds: float


class Box(NamedTuple):
    """The confinement of processes: its name for the score, and the command words before the interpreter's."""

    name: str
    words: tuple[str, ...] = ()


def run(
    jobs: Sequence[Program],
    *,
    unsafe: bool = False,
    limits: Limits = Limits(),  # noqa: B008
    progress: bool = True,
) -> list[Result]:
    """Judge all jobs, one per available CPU at a time → their results, in order.

    Raises UserError if no sandbox can be made and `unsafe` is not given.
    """
    box = find_box(unsafe)
    with ExitStack() as stack, ThreadPoolExecutor(cpus()) as pool:
        stop, running = _pipe(stack)
        waiting = [pool.submit(judge, job, box, limits, stop) for job in jobs]
        try:
            return [
                future.result()
                for future in tqdm(waiting, desc="check", unit="program", disable=None if progress else True)
            ]
        finally:
            running.close()  # after Ctrl-C do not wait for running programs
            pool.shutdown(cancel_futures=True)


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def judge(job: Program, box: Box, limits: Limits = Limits(), stop=None) -> Result:  # noqa: B008
    """Run one job. When this returns, its processes are gone. stop: the reading end of a pipe; when its other end is closed, the
    job is abandoned."""
    start, token = time.monotonic(), secrets.token_hex(16)
    tests = {"setup": job.setup, "tests": job.tests, "names": job.names, "token": token}
    with ExitStack() as stack:
        verdict, verdict_end = _pipe(stack)
        if job.one_process:
            program = stack.enter_context(_start("alone", tests | {"source": job.source}, [verdict_end], box, limits))
        else:
            requests, requests_end = _pipe(stack)
            replies, replies_end = _pipe(stack)
            program = stack.enter_context(
                _start("serve", {"source": job.source, "names": job.names}, [requests, replies_end], box, limits)
            )
            stack.enter_context(_start("check", tests, [replies, requests_end, verdict_end], box, limits))
            for file in (requests, requests_end, replies, replies_end):
                file.close()
        verdict_end.close()
        said = _read(verdict, start + limits.wall, stop)
        if said is None:
            status, detail = "timeout", f"after {limits.wall:g} s"
        else:
            status, detail = _verdict(said, token)
        if status == "ended":
            detail += _last_words(program)
    return Result(status, detail, round(time.monotonic() - start, 3))


def _verdict(said: str, token: str) -> tuple[str, str]:
    """Return the checker's status and detail. Text that does not begin with the token was not written by the checker."""
    sender, _, rest = said.partition(" ")
    status, _, detail = rest.partition(" ")
    if sender != token or status not in STATUSES:
        return "ended", "no verdict"
    return status, " ".join(detail.split())


def _last_words(program: subprocess.Popen) -> str:
    """Return how a process ended, if it did."""
    with suppress(subprocess.TimeoutExpired):
        code = program.wait(0.5)
        number = -code if code < 0 else code - 128  # bubblewrap reports a signal like a shell
        if number > 0:
            with suppress(ValueError):
                return f" ({signal.Signals(number).name})"
        return f" (status {code})"
    return ""


def _pipe(stack: ExitStack) -> tuple:
    return tuple(stack.enter_context(os.fdopen(fd, mode, 0)) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True))


def _read(pipe, deadline: float, stop=None) -> str | None:
    """Read until the pipe is closed; None if that takes too long or `stop` is closed first."""
    said = b""
    with selectors.DefaultSelector() as selector:
        for each in (pipe, stop) if stop else (pipe,):
            selector.register(each, selectors.EVENT_READ)
        while len(said) < 10_000:
            ready = [key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
            if not ready or stop in ready:
                return None
            if not (piece := os.read(pipe.fileno(), 4096)):
                break
            said += piece
    return said.decode("utf-8", "replace")


@contextmanager
def _start(role: str, job: dict, pipes: Sequence, box: Box, limits: Limits) -> Iterator[subprocess.Popen]:
    """Run `eval.execution.inside` in `role` with a job, in a box; at the end kill it and everything that it started."""
    job = job | {"output": limits.output, "limits": _limits(limits)}
    with ExitStack() as stack:
        given = stack.enter_context(tempfile.TemporaryFile())
        given.write(json.dumps(job).encode())
        given.seek(0)
        alive, _held = _pipe(stack)  # the process is killed when the other end closes, at the latest with this one
        numbers = [file.fileno() for file in (alive, *pipes)]
        words, folder, passed = list(box.words), None, list(numbers)
        if not words:
            place = tempfile.TemporaryDirectory(prefix="ba-lora-", ignore_cleanup_errors=True)
            folder, inside = stack.enter_context(place), str(INSIDE)
        else:
            inside = "/inside.py"
            if filter_ := system_call_filter():
                reading, writing = _pipe(stack)
                writing.write(filter_)
                writing.close()
                passed.append(reading.fileno())
                words += ["--seccomp", str(reading.fileno())]
            words.append("--")
        process = subprocess.Popen(
            [*words, _interpreter(), "-s", "-S", "-B", inside, role, *map(str, numbers)],
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},  # the order of a set must be the same in every run
            cwd=folder or "/",
            pass_fds=passed,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _kill(process, bool(box.words))


def _kill(process: subprocess.Popen, boxed: bool) -> None:
    """Kill the group. In a box, its first process is killed first: bubblewrap ends when all of them are gone."""
    if boxed and process.poll() is None:
        with suppress(OSError, ValueError, subprocess.TimeoutExpired):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            if children:
                process.wait(2)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _limits(limits: Limits) -> dict:
    return {
        "CPU": [limits.cpu, limits.cpu + 1],
        "AS": [limits.memory] * 2,
        "FSIZE": [limits.files] * 2,
        "NPROC": [1, 1],
        "NOFILE": [64, 64],
        "CORE": [1, 1],  # not 0: with 0, a crash may still be passed to a crash handler of the system
    }


# The box


def find_box(unsafe: bool = False) -> Box:
    """Return bubblewrap if it works, else no box. Raises UserError if it does not work and `unsafe` is not given."""
    box, reason = _bubblewrap()
    if box:
        return box
    if not unsafe:
        raise UserError(
            f"{reason}; or add --unsafe_execution to run model-written code with your rights and limits only"
        )
    return Box("none")


@cache
def _bubblewrap() -> tuple[Box | None, str]:
    """Return (the box, "") or (None, why there is none and what to do)."""
    program = shutil.which("bwrap")
    if not program:
        return None, "model-written code needs bubblewrap, which is not installed; run: apt-get install bubblewrap"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.split()
    reason = ""
    nobody = "--unshare-user --uid 65534 --gid 65534".split()
    for user in (nobody, [])[: 2 if os.geteuid() == 0 else 1]:  # root can work without a user namespace
        box = Box(" ".join(["bubblewrap", *version[-1:]]), (program, *user, *_options(program)))
        result = judge(Program("def f(x):\n    return x", "assert f(1) == 1", ("f",)), box)
        if result.status == "passed":
            return box, ""
        tried = subprocess.run([*box.words, _interpreter(), "-c", ""], capture_output=True, text=True, check=False)
        reason = " ".join(tried.stderr.split())[:200] or result.detail
    return None, f"bubblewrap does not work here ({reason}); allow namespaces for unprivileged users on this machine"


def _options(program: str) -> list[str]:
    """Return bubblewrap's options: namespaces, and the visible part of the disk."""
    words = "--unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --die-with-parent".split()
    words += ["--cap-drop", "ALL"]
    libraries = list(dict.fromkeys([f"{sys.base_prefix}/lib", sysconfig.get_path("stdlib"), "/usr/lib", "/usr/lib64"]))
    for folder in ("/lib", "/lib64"):
        if os.path.islink(folder):
            words += ["--symlink", os.readlink(folder), folder]
        else:
            libraries.append(folder)
    for place in [*libraries, "/nix/store", "/etc/ld.so.cache", _interpreter()]:
        words += ["--ro-bind-try", place, place]
    for library in libraries:
        for packages in sorted([*Path(library).glob("python*/*-packages"), *Path(library).glob("*-packages")]):
            words += ["--tmpfs", str(packages), "--remount-ro", str(packages)]
    for file in (INSIDE, VALUES):
        words += ["--ro-bind", str(file), f"/{file.name}"]
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    if "--size" in shown.stdout + shown.stderr:
        words += ["--size", str(Limits().files), "--tmpfs", "/tmp"]
    else:  # before 0.7 nothing would limit the size of the folder, so it stays empty
        words += ["--dir", "/tmp"]
    return [*words, "--remount-ro", "/", "--chdir", "/tmp"]


def _interpreter() -> str:
    """Return the interpreter behind a virtual environment's link."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))
