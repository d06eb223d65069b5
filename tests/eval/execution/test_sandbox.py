"""The sandbox with programs that attack it, and with programs that do not."""

import ctypes
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from eval.execution import inside, sandbox
from eval.execution.sandbox import Box, Limits, Program, find_box, judge, run
from tests.eval.execution import hostile_programs as hostile
from tests.eval.execution.sandboxes import box_or_skip

ROOT = Path(__file__).parents[3]
TESTS = "assert f(2) == 4\nassert f(3) == 9"
SHORT = Limits(cpu=1, wall=3.0, memory=256 << 20, output=1 << 20)
GOOD = Program("def f(x):\n    return x * x", TESTS, ("f",))


@pytest.fixture(scope="session")
def box():
    return box_or_skip()


def processes() -> dict[int, str]:
    """Every process on the machine that runs `eval.execution.inside`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"inside.py" in command:
            found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


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
        start = time.monotonic()
        try:
            results = run(everything, limits=SHORT, progress=False)
        finally:
            del os.environ["BA_LORA_CANARY"]
        seconds = time.monotonic() - start
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
        "seconds": seconds,
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
    job = json.dumps({"limits": {}, "source": "import time\ndef f(): time.sleep(1000)", "output": 1000}).encode()
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
            os.write(ask, b'{"name": "f", "args": ["list"], "kwargs": ["dict"]}\n')
            os.close(held)
            assert process.wait(60) == -signal.SIGKILL
        for number in (alive, requests, ask, answers):
            os.close(number)


# Programs that are not hostile


def passes(source, tests, box, **options) -> bool:
    names = options.pop("names", ("f",))
    return judge(Program(source, tests, names, **options), box).status == "passed"


def test_a_right_program_passes_and_a_wrong_one_fails(box):
    assert judge(GOOD, box).status == "passed"
    wrong = judge(GOOD._replace(source="def f(x):\n    return x + 2"), box)
    assert (wrong.status, wrong.detail) == ("failed", "AssertionError in assert f(3) == 9")


@pytest.mark.parametrize(
    ("source", "status", "detail"),
    [
        ("def g(x): return x", "error", "AttributeError"),
        ("def f(x): return 1 / 0", "error", "ZeroDivisionError: division by zero in assert f(2) == 4"),
        ("def f(x) return", "error", "SyntaxError"),
        ("import numpy", "error", "ModuleNotFoundError"),
        ("f = 4", "error", "TypeError"),
        ("", "error", "AttributeError"),
        ("def f(x): return chr(0xD800)", "failed", "assert f(2)"),
        ("x = '\\0'\x00", "error", "Error"),
    ],
)
def test_a_program_that_does_not_work_says_why(box, source, status, detail):
    result = judge(GOOD._replace(source=source), box)
    assert result.status == status and detail in result.detail


def test_run_keeps_the_order_of_the_jobs(box):
    jobs = [GOOD, GOOD._replace(source="def f(x): return 0"), GOOD, GOOD._replace(source="import os; os._exit(0)")]
    assert [result.status for result in run(jobs, progress=False)] == ["passed", "failed", "passed", "ended"]
    assert run([], progress=False) == []


VALUES = [
    *("None", "True", "0", "-5", "2 ** 53", "-(2 ** 64)", "10 ** 5000", "0.1", "-0.0", "1e400", "5e-324"),
    *("'ü\\n\"'", "'\\ud800'", "b'\\x00\\xff'", "(1+2j)", "[]", "()", "set()", "frozenset({1})", "{}"),
    *("[1, [2, (3, {4: {5: frozenset({6})}})]]", "{(1, 2): [None]}", "range(2, 9, 3)", "{'a': 1}.keys()"),
]


@pytest.mark.parametrize("text", VALUES)
def test_a_plain_value_comes_back_as_it_is(box, text):
    value = eval(text)
    again = inside.unpack(inside.json.loads(inside.json.dumps(inside.pack(value))))
    assert (
        type(again) is type(value) and again == value and str(again)[:1000:7] == str(value)[:1000:7]
        if (text != "10 ** 5000")
        else again == value
    )


def test_values_pass_both_ways(box):
    tests = f"for value in [{', '.join(VALUES)}]:\n    assert f(value) == value and type(f(value)) is type(value)\n"
    tests += "nan = f(float('nan'))\nassert nan != nan\nassert f(1) is not True and f(x=1) == 1"
    assert passes("def f(x): return x", tests, box)


def test_subclasses_arrive_as_plain_values(box):
    source = """
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
Point = namedtuple("Point", "x y")
Colour = IntEnum("Colour", "RED")
def f(): return [Counter("aab"), OrderedDict(a=1), defaultdict(int, a=1), Point(1, 2), Colour.RED, type("S", (str,), {})("s")]
"""
    tests = "got = f()\nassert got == [{'a': 2, 'b': 1}, {'a': 1}, {'a': 1}, (1, 2), 1, 's']\n"
    tests += "assert [type(one) for one in got] == [dict, dict, dict, tuple, int, str]"
    assert passes(source, tests, box)


def test_iterators_and_views_are_what_they_are_in_python(box):
    source = "def f(kind): return {'g': (n for n in [1, 2]), 'm': map(abs, [-1]), 'v': {1: 2}.values(), 'z': zip('a', 'b')}[kind]"
    tests = "assert list(f('g')) == [1, 2] and f('g') != [1, 2] and next(f('m')) == 1 and f('m') != [1]\n"
    tests += "assert list(f('v')) == [2] and f('v') != [2] and dict(f('z')) == {'a': 'b'} and bool(f('g'))\n"
    tests += "one = f('g')\nassert list(one) == [1, 2] and list(one) == []"
    assert passes(source, tests, box)


def test_arguments_that_a_program_changes_are_changed(box):
    source = "def f(a, d, s, t):\n    a.sort(); d['new'] = a; s.clear(); t[0].append(1)"
    tests = "a, d, s, t = [3, 1], {}, {1}, ([],)\nassert f(a, d, s, t) is None\n"
    tests += "assert a == [1, 3] and d == {'new': [1, 3]} and s == set() and t == ([1],)"
    assert passes(source, tests, box)


def test_an_expected_exception_is_recognised_by_its_builtin_class(box):
    source = "class Mine(ValueError): pass\ndef f(x): raise {0: ValueError('no'), 1: Mine(), 2: KeyError('k')}[x]"
    tests = "for x, kind in enumerate([ValueError, ValueError, KeyError]):\n    try: f(x)\n    except kind: pass\n"
    tests += "    else: assert False"
    assert passes(source, tests, box)


@pytest.mark.parametrize("what", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_leaving_is_never_an_expected_exception(box, what):
    tests = "try: f(1)\nexcept Exception: pass\nexcept SystemExit: pass\nexcept KeyboardInterrupt: pass"
    assert not passes(f"def f(x): raise {what}", tests, box)


def test_an_exception_cannot_end_a_loop_of_the_tests(box):
    assert not passes("def f(x): raise StopIteration", "assert all(map(f, [1, 2])) and list(map(f, [1])) == []", box)


def test_tests_cannot_catch_the_end_of_the_program(box):
    result = judge(Program("import os\ndef f(x): os._exit(0)", "try: f(1)\nexcept BaseException: pass", ("f",)), box)
    assert result.status == "ended"


def test_a_program_keeps_its_state_between_calls(box):
    assert passes(
        "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)", "assert [f(9), f(9)] == [1, 2]", box
    )


def test_helpers_of_the_tests_are_the_tests_own(box):
    job = Program(
        "def f(x): return 0\ndef helper(x): return 0", "assert f(2) == helper(2)", ("f",), "def helper(x): return x"
    )
    assert judge(job, box).status == "failed"


def test_a_program_may_use_its_folder_and_the_standard_library(box):
    source = """
import bisect, collections, datetime, decimal, fractions, functools, hashlib, heapq, itertools, json, math, random, re, string, typing
from dataclasses import dataclass
@dataclass
class Node: value: int
def f(x):
    with open("note", "w") as file: file.write(str(x))
    return Node(int(open("note").read())).value + math.gcd(4, 6)
"""
    assert passes(source, "assert f(2) == 4", box)


def test_a_main_block_is_not_executed(box):
    assert passes("def f(x): return x\nif __name__ == '__main__':\n    f = None", "assert f(1) == 1", box)


def test_the_order_of_sets_and_chance_are_the_same_in_every_run(box):
    source = "import random\ndef f(): return [list({'a', 'b', 'c', 'd', 'e', 'f'}), random.random()]"
    results = [judge(Program(source, "assert False, f()", ("f",)), box) for _ in range(3)]
    assert results[0].status == "failed" and len({result.detail for result in results}) == 1


def test_tests_may_run_in_the_programs_process(box):
    source, tests = "class Node:\n    value = 4\ndef f(node): return node.value", "assert f(Node()) == 4"
    assert passes(source, tests, box, one_process=True)
    assert not passes(source, "assert f(Node()) == 5", box, one_process=True)
    for attack in ("import os; os._exit(0)", "raise SystemExit", "print('passed')", "assert False"):
        assert not passes(source + "\n" + attack, "assert f(Node()) == 5", box, one_process=True)


def test_a_program_gets_its_own_namespaces_and_no_rights(box):
    source = """
import ctypes, os
def f():
    libc = ctypes.CDLL(None)
    return [os.getpid() < 4, os.getuid(), sorted(os.listdir("/")), os.getcwd(), os.listdir("/tmp"), libc.prctl(39, 0, 0, 0, 0)]
"""
    tests = "pid, user, root, here, files, privileges = f()\nassert pid and here == '/tmp' and files == []\n"
    tests += "assert user == 65534 and privileges == 1\nassert set(root) & {'proc', 'sys', 'home', 'dev', 'var', 'mnt'} == set(), root"
    result = judge(Program(source, tests, ("f",)), box)
    assert (result.status, result.detail) == ("passed", "")


def test_namespaces_differ_from_the_callers(box):
    """Seen from outside while a program runs."""
    job = Program("import time\ndef f(x): time.sleep(1); return x * x", "assert f(2) == 4", ("f",))
    before, results = processes(), []
    thread = threading.Thread(target=lambda: results.append(judge(job, box)))
    thread.start()
    kinds = {"user", "pid", "mnt", "net", "ipc", "uts"}
    mine = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    separate, deadline = set(), time.monotonic() + 5
    while separate != kinds and time.monotonic() < deadline:
        for pid in set(processes()) - set(before):
            try:
                separate = {kind for kind in kinds if os.readlink(f"/proc/{pid}/ns/{kind}") != mine[kind]} | separate
            except OSError:
                continue
    thread.join()
    assert separate == kinds and results[0].status == "passed"


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
    source = "import os\nopen('file', 'w').write('x')\nif os.fork() == 0:\n    while True: pass\ndef f(x): return x * x"
    status = "passed" if os.geteuid() == 0 else "error"  # the limit on processes does not apply to root
    assert judge(Program(source, TESTS, ("f",)), Box("none")).status == status
    assert left_over(before[0]) == {}
    assert set(Path(tempfile.gettempdir()).glob("ba-lora-*")) - before[1] == set()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no table of system calls for this machine")
def test_the_filter_jumps_where_it_should():
    """Evaluate the filter by hand for every system call."""
    from eval.execution.system_calls import AUDIT_ARCH, SYSTEM_CALLS, system_call_filter

    class Step(ctypes.Structure):
        _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]

    text = system_call_filter()
    steps = (Step * (len(text) // 8)).from_buffer_copy(text)

    def answer(number, arch):
        place, value = 0, None
        while True:
            step = steps[place]
            if step.code == 0x06:
                return step.k
            if step.code == 0x20:
                value = {0: number, 4: arch}[step.k]
                place += 1
            else:
                holds = value == step.k if step.code == 0x15 else value >= step.k
                place += 1 + (step.yes if holds else step.no)

    machine = platform.machine()
    column = 1 + list(AUDIT_ARCH).index(machine)
    denied = {int(line.split()[column]) for line in SYSTEM_CALLS.splitlines() if line.split()[column] != "-"}
    for number in range(600):
        assert answer(number, AUDIT_ARCH[machine]) == (0x00050001 if number in denied else 0x7FFF0000), number
    assert answer(0x40000000 + 57, AUDIT_ARCH[machine]) == 0x00050001
    assert answer(57, 0x40000003) == 0x80000000  # the numbers of another machine
