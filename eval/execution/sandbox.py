"""Runs untrusted programs: each in a sandbox of its own, judged by a checker in another one.

`run` takes jobs, a program and the tests of its functions, and says for each whether the end of the tests was reached. The
program and the checker are two processes; all that passes between them are plain values over a pipe (`eval.execution.inside`). A job
whose tests need more than values (the program's own classes) runs in one process, and is worth less: see below.

With bubblewrap each process has a fresh interpreter in user, mount, pid, network, ipc and uts namespaces of its own: no
network, no other process, no /proc, no environment, no open files, read-only standard and shared libraries, no installed
package, and an empty folder in memory that it may write to. It cannot start a process or a thread (a system call filter on
x86-64 and aarch64, the limit on processes elsewhere), so its limits on processor time and memory are limits on all it does.
At the end everything in it is killed.

Not protected from: faults of the kernel or of bubblewrap; a program that has learned the answers; a program that waits out
its limits, once a task; side channels, such as how busy the machine is. In one process a program can forge its verdict if
it looks for it, and an object of its own can claim to equal anything.

Without bubblewrap, which `unsafe` must allow: the same processes in a process group and a temporary folder of their own, with
the same limits, but with your files, your network and your rights; a process that leaves its group may stay. Where there is no
filter, the limit on processes counts all of yours, and does not hold for root.
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
STATUSES = ("passed", "failed", "error", "ended", "timeout")


class Limits(NamedTuple):
    """What one process may use; `wall` is for program and checker together."""

    cpu: int = 10  # seconds
    wall: float = 20.0  # seconds
    memory: int = 1 << 30  # bytes of address space
    files: int = 16 << 20  # bytes of a file; the folder holds the default in all
    output: int = 16 << 20  # bytes of a result


class Job(NamedTuple):
    """A program and the tests that it must pass.

    source: the program, executed as a module. names: its functions that the tests call. setup: code of the benchmark that the
    tests' namespace starts with. tests: executed last. one_process: program, setup and tests share a namespace.
    """

    source: str
    tests: str
    names: tuple[str, ...] = ()
    setup: str = ""
    one_process: bool = False


class Result(NamedTuple):
    """passed: the tests' end was reached. failed: an assertion was false. error: an exception ended the tests. ended: the program's
    process did not answer (a limit, or it left). timeout: the wall time was up."""

    status: str
    detail: str
    seconds: float


class Box(NamedTuple):
    """How processes are confined: the name for the score, and the words before the interpreter's."""

    name: str
    words: tuple[str, ...] = ()


def run(jobs: Sequence[Job], *, unsafe: bool = False, limits: Limits = Limits(), progress: bool = True) -> list[Result]:  # noqa: B008
    """Judge all jobs, as many at once as there are processors → their results, in order.

    Raises UserError where no sandbox can be made and `unsafe` is not given.
    """
    box = find_box(unsafe)
    with ExitStack() as stack, ThreadPoolExecutor(processors()) as pool:
        stop, running = _pipe(stack)
        waiting = [pool.submit(judge, job, box, limits, stop) for job in jobs]
        try:
            return [
                future.result()
                for future in tqdm(waiting, desc="check", unit="program", disable=None if progress else True)
            ]
        finally:
            running.close()  # after Ctrl-C the programs that run are not waited for
            pool.shutdown(cancel_futures=True)


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def judge(job: Job, box: Box, limits: Limits = Limits(), stop=None) -> Result:  # noqa: B008
    """Run one job. When this returns, its processes are gone. stop: the reading end of a pipe; once the other is closed, the
    job is given up."""
    start, token = time.monotonic(), secrets.token_hex(16)
    tests = {"setup": job.setup, "tests": job.tests, "names": job.names, "token": token}
    with ExitStack() as stack:
        verdict, verdict_end = _pipe(stack)
        if job.one_process:
            program = stack.enter_context(_start("alone", tests | {"source": job.source}, [verdict_end], box, limits))
        else:
            requests, requests_end = _pipe(stack)
            replies, replies_end = _pipe(stack)
            program = stack.enter_context(_start("serve", {"source": job.source}, [requests, replies_end], box, limits))
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
    """The checker's status and detail. Whatever does not begin with the token was written by someone else."""
    sender, _, rest = said.partition(" ")
    status, _, detail = rest.partition(" ")
    if sender != token or status not in STATUSES:
        return "ended", "no verdict"
    return status, " ".join(detail.split())


def _last_words(program: subprocess.Popen) -> str:
    """How a process ended, if it did."""
    with suppress(subprocess.TimeoutExpired):
        code = program.wait(0.5)
        number = -code if code < 0 else code - 128  # bubblewrap reports a signal as a shell does
        if number > 0:
            with suppress(ValueError):
                return f" ({signal.Signals(number).name})"
        return f" (status {code})"
    return ""


def _pipe(stack: ExitStack) -> tuple:
    return tuple(stack.enter_context(os.fdopen(fd, mode, 0)) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True))


def _read(pipe, deadline: float, stop=None) -> str | None:
    """All that is written until the pipe is closed; None when that takes too long, or `stop` is closed before."""
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
    """Run `eval.execution.inside` in `role` with a job, in a box; kill it and all that it started at the end."""
    job = job | {"output": limits.output, "limits": _limits(limits)}
    with ExitStack() as stack:
        given = stack.enter_context(tempfile.TemporaryFile())
        given.write(json.dumps(job).encode())
        given.seek(0)
        alive, _held = _pipe(stack)  # it is killed when the other end closes, at the latest when this process is gone
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
            env={"PYTHONHASHSEED": "0"},  # the order of a set must not differ between two runs
            cwd=folder or "/",
            pass_fds=passed,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _kill(process, bool(box.words))


def _kill(process: subprocess.Popen, boxed: bool) -> None:
    """Kill the group. In a box its first process goes first: bubblewrap ends when all of them are gone."""
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
        "CORE": [1, 1],  # 1 and not 0: with 0 a crash still goes to a program that the system may have set up for it
    }


# The box


def find_box(unsafe: bool = False) -> Box:
    """Bubblewrap where it works, else no box. Raises UserError where it does not and `unsafe` is not given."""
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
    """(the box, "") or (None, why there is none and what to do)."""
    program = shutil.which("bwrap")
    if not program:
        return None, "model-written code needs bubblewrap, which is not installed; run: apt-get install bubblewrap"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.split()
    reason = ""
    nobody = "--unshare-user --uid 65534 --gid 65534".split()
    for user in (nobody, [])[: 2 if os.geteuid() == 0 else 1]:  # root can do without a namespace of users
        box = Box(" ".join(["bubblewrap", *version[-1:]]), (program, *user, *_options(program)))
        result = judge(Job("def f(x):\n    return x", "assert f(1) == 1", ("f",)), box)
        if result.status == "passed":
            return box, ""
        tried = subprocess.run([*box.words, _interpreter(), "-c", ""], capture_output=True, text=True, check=False)
        reason = " ".join(tried.stderr.split())[:200] or result.detail
    return None, f"bubblewrap does not work here ({reason}); allow namespaces for unprivileged users on this machine"


def _options(program: str) -> list[str]:
    """Bubblewrap's options: namespaces, and what a process sees of the disk."""
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
    words += ["--ro-bind", str(INSIDE), "/inside.py"]
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    if "--size" in shown.stdout + shown.stderr:
        words += ["--size", str(Limits().files), "--tmpfs", "/tmp"]
    else:  # before 0.7 nothing would limit the folder: there it stays empty
        words += ["--dir", "/tmp"]
    return [*words, "--remount-ro", "/", "--chdir", "/tmp"]


def _interpreter() -> str:
    """The interpreter behind a virtual environment's link."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))
