"""The sandbox with programs that attack it, and code without a sandbox."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from eval.execution import sandbox
from eval.execution.sandbox import Box, Limits, Program, find_box, judge, run
from tests.eval.execution import hostile_programs as hostile
from tests.eval.execution.sandboxes import GOOD, TESTS, processes

ROOT = Path(__file__).parents[3]
SHORT = Limits(cpu=1, wall=3.0, memory=256 << 20, output=1 << 20)


def left_over(before) -> dict[int, str]:
    """Processes that are not in `before` and persist: those that another program started at this moment are soon gone, and one
    killed while the kernel creates its namespaces goes when they exist."""
    new = set(processes()) - set(before)
    for _ in range(300):
        new &= set(processes())
        if not new:
            break
        time.sleep(0.1)
    return {pid: text for pid, text in processes().items() if pid in new}


# Hostile programs, all at once on all CPUs


@pytest.fixture(scope="session")
def attack(box, tmp_path_factory):
    """The results of all hostile programs, and what they could have touched."""
    canary = tmp_path_factory.mktemp("canary")
    (canary / "answers").write_text("f(2) == 4")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        server.setblocking(False)
        local.bind(str(canary / "socket"))
        local.listen()
        local.setblocking(False)
        values = {"canary": canary, "port": server.getsockname()[1], "project": ROOT}
        values |= {"packages": sysconfig.get_path("purelib")}
        values |= {"fork": {"x86_64": 56, "aarch64": 220}.get(platform.machine(), -1)}
        jobs = {
            name: Program(hostile.fill(source, **values), TESTS, ("f",)) for name, source in hostile.PROGRAMS.items()
        }
        neighbours = [GOOD] * 20
        everything = [*jobs.values()]
        for place, job in enumerate(neighbours):  # between the hostile programs
            everything.insert(5 * place, job)
        before, temporary = processes(), set(os.listdir(tempfile.gettempdir()))
        os.environ["BA_LORA_CANARY"] = "secret"
        try:
            results = run(everything, limits=SHORT, progress=False)
        finally:
            del os.environ["BA_LORA_CANARY"]
        visits = []
        for listener in (server, local):
            with suppress(BlockingIOError):
                visits.append(listener.accept())
    good = [result for result, job in zip(results, everything, strict=True) if job is GOOD]
    rest = [result for result, job in zip(results, everything, strict=True) if job is not GOOD]
    return {
        "results": dict(zip(jobs, rest, strict=True)),
        "good": good,
        "left": left_over(before),
        "files": set(os.listdir(tempfile.gettempdir())) - temporary,
        "canary": canary,
        "visits": visits,
    }


@pytest.mark.parametrize("name", hostile.PROGRAMS)
def test_a_hostile_program_does_not_pass(attack, name):
    assert attack["results"][name].status in ("failed", "error", "ended", "timeout")


def test_there_are_at_least_forty_hostile_programs():
    assert len(hostile.PROGRAMS) >= 40


def test_hostile_programs_leave_no_process(attack):
    assert attack["left"] == {}


def test_hostile_programs_leave_no_file_and_change_none(attack):
    assert sorted(os.listdir(attack["canary"])) == ["answers", "socket"]
    assert (attack["canary"] / "answers").read_text() == "f(2) == 4"
    names = ("ba-lora-", "tmp", "new", "large", "link")
    assert [name for name in attack["files"] if name.startswith(names) and name.endswith(("large", "link"))] == []
    assert not any(Path(place).exists() for place in ("/new", "/usr/new", "/etc/new", "/tmp/large", "/tmp/link"))
    assert not (Path(os.__file__).parent / "new.py").exists()


def test_hostile_programs_reach_no_server(attack):
    assert attack["visits"] == []


def test_hostile_programs_do_not_fail_their_neighbours(attack):
    assert {result.status for result in attack["good"]} == {"passed"}


def test_no_hostile_program_runs_longer_than_the_wall_time(attack):
    slowest = max(attack["results"].values(), key=lambda result: result.seconds)
    assert slowest.seconds < SHORT.wall + 10  # a busy machine needs time to end a process


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        ("sleeps", "timeout", "after 3 s"),
        ("stops itself", "timeout", "after 3 s"),
        ("kills itself", "ended", "SIGKILL"),
        ("crashes the interpreter", "ended", "SIGSEGV"),
        ("leaves at once with os._exit(0)", "ended", "status 0"),
        ("leaves at once with sys.exit(0)", "error", "SystemExit"),
        ("returns an int that equals everything", "failed", "assert f(2) == 4"),
        ("returns an object that equals everything", "failed", "assert f(2) == 4"),
        ("takes memory without end", "error", "MemoryError"),
        ("returns a result without measure", "error", "bytes"),
        ("returns an iterator without end", "error", "an iterator"),
        ("writes a large file", "error", "OSError"),
        ("forks", "error", "Error"),
        ("reads the environment", "failed", "assert f(2)"),
        ("connects to a server on this machine", "error", "Error"),
    ],
)
def test_the_result_says_what_stopped_a_program(attack, name, status, detail):
    result = attack["results"][name]
    assert result.status == status and detail in result.detail


@pytest.mark.parametrize(
    ("name", "signals"), [("loops without end", "SIGXCPU SIGKILL"), ("ignores every signal and loops", "SIGKILL")]
)
def test_cpu_time_is_limited_whatever_a_program_does_with_signals(box, name, signals):
    result = judge(Program(hostile.PROGRAMS[name], TESTS, ("f",)), box, Limits(cpu=1, wall=60))
    assert result.status == "ended" and any(f"({signal})" in result.detail for signal in signals.split())


def test_most_hostile_programs_do_work_where_nothing_stops_them(tmp_path):
    """They are attacks, not typing errors: unguarded, these programs answer correctly."""
    (tmp_path / "answers").write_text("x")
    names = ["reads the environment", "reads /proc", "reads a file of the user", "writes into a folder of the user"]
    names += ["forks", "starts its interpreter", "looks for the tests in the frames above", "writes through a symlink"]
    names += ["finds the project or an installed package", "reads /etc/passwd"]
    values = {"canary": tmp_path, "project": ROOT, "packages": sysconfig.get_path("purelib")}
    test = "def test():\n    text = 'assert f(2)'\n    assert f(2) == 4\ntest()"
    for name in names:
        source = hostile.fill(hostile.PROGRAMS[name], **values).replace("/tmp/link", f"{tmp_path}/link")
        (tmp_path / "new").unlink(missing_ok=True)
        words = [sys.executable, "-c", f"{source}\n{test}"]
        done = subprocess.run(words, env={"HOME": "x"}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (name, done.stderr)


@pytest.mark.parametrize("delay", [0, 0.003, 0.006, 0.01, 0.015, 0.02, 0.03, 0.3])
def test_a_killed_caller_leaves_no_sandbox(box, delay, tmp_path):
    """At any time: also while bubblewrap creates the namespaces, when it does not yet watch its caller."""
    (tmp_path / "project").symlink_to(ROOT)  # appears in the command lines of this test's sandboxes only
    code = (
        "from eval.execution.sandbox import *\n"
        "find_box()\n"
        "print('start', flush=True)\n"
        "run([Program('import time\\ndef f(x): time.sleep(1000)', 'f(1)', ('f',))] * 2, progress=False)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "project")}
    words = [sys.executable, "-c", code]
    caller = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    assert caller.stdout.readline() == b"start\n"
    caller.stdout.close()
    time.sleep(delay)
    if delay == 0.3:  # the programs are running
        deadline = time.monotonic() + 30
        while not mine(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert mine(tmp_path)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    deadline = time.monotonic() + 120  # the kernel may be slow to create namespaces and to notice the caller's end
    looks = 0  # in a row without finding any: a child that has yet to become bubblewrap has its caller's command line
    while looks < 5 and time.monotonic() < deadline:
        looks = 0 if mine(tmp_path) else looks + 1
        time.sleep(0.1)
    assert mine(tmp_path) == {}


def mine(folder: Path) -> dict[int, str]:
    """The processes whose command line names a file of this folder."""
    return {pid: text for pid, text in processes().items() if str(folder) in text}


def test_what_is_started_ends_with_its_caller_by_itself():
    """Without bubblewrap's help: if the caller goes, and if it has already gone."""
    job = json.dumps(
        {"limits": {}, "source": "import time\ndef f(): time.sleep(1000)", "names": ["f"], "output": 1000}
    ).encode()
    for gone in (False, True):
        (alive, held), (requests, ask), (answers, replies) = os.pipe(), os.pipe(), os.pipe()
        words = [sys.executable, "-s", "-S", "-B", str(sandbox.INSIDE), "serve", *map(str, (alive, requests, replies))]
        if gone:
            os.close(held)
        process = subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[alive, requests, replies])
        os.close(replies)
        with suppress(BrokenPipeError):
            process.stdin.write(job)
            process.stdin.close()
        if gone:
            assert os.read(answers, 100) == b"" and process.wait() == 1
        else:
            assert os.read(answers, 100) == b"{}\n"
            os.write(ask, b'{"call": "f", "args": ["list"], "kwargs": ["dict"]}\n')
            os.close(held)
            assert process.wait(60) == -signal.SIGKILL
        for number in (alive, requests, ask, answers):
            os.close(number)


# Without bubblewrap


def test_without_bubblewrap_code_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    sandbox._bubblewrap.cache_clear()
    try:
        with pytest.raises(UserError, match=r"apt-get install bubblewrap; or add --unsafe_execution"):
            run([GOOD])
        assert find_box(unsafe=True) == Box("none")
    finally:
        sandbox._bubblewrap.cache_clear()


def test_a_bubblewrap_that_does_not_work_is_no_sandbox(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo bubblewrap 9 && exit\necho 'No permissions' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    sandbox._bubblewrap.cache_clear()
    try:
        with pytest.raises(UserError, match=r"bubblewrap does not work here \(.*No permissions.*--unsafe_execution"):
            run([GOOD])
    finally:
        sandbox._bubblewrap.cache_clear()


@pytest.mark.parametrize("name", [*hostile.VERDICT, "loops without end", "takes memory without end", "sleeps"][::3])
def test_unsafe_execution_still_judges_and_limits(name):
    source = hostile.PROGRAMS[name].replace("/tmp/", "")
    limits = SHORT._replace(wall=1.5)
    assert judge(Program(source, TESTS, ("f",)), Box("none"), limits).status != "passed"


def test_unsafe_execution_kills_the_group_and_removes_the_folder():
    before = processes(), set(Path(tempfile.gettempdir()).glob("ba-lora-*"))
    source = "import os\nopen('file', 'w').write('x')\nchild = os.fork()\nwhile child == 0: pass\ndef f(x): return x * x if child else 0"
    status = "passed" if os.geteuid() == 0 else "error"  # the limit on processes does not apply to root
    assert judge(Program(source, TESTS, ("f",)), Box("none")).status == status
    assert left_over(before[0]) == {}
    assert set(Path(tempfile.gettempdir()).glob("ba-lora-*")) - before[1] == set()
