"""The sandbox's verdicts on programs that do not attack it, and the values that pass between them and their tests."""

import os
import threading
import time

import pytest

from eval.execution import inside
from eval.execution.sandbox import Program, judge, run
from tests.eval.execution.sandboxes import GOOD, processes


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


THREADS = {  # the sandbox allows one thread, so each runs to its end when it is started
    "joined": "def f(x):\n    found = []\n    t = threading.Thread(target=lambda: found.append(x * x))\n"
    "    t.start(); t.join(1)\n    return 0 if t.is_alive() else found[0]",
    "of a class": "class T(threading.Thread):\n    def run(self): self.found = self.x ** 2\n"
    "def f(x): t = T(daemon=True); t.x = x; t.start(); t.join(); return t.found",
    "that raises": "def f(x): threading.Thread(target=int, args='x').start(); return x * x",
    "of a timer": "def f(x): found = []; threading.Timer(0.01, found.append, [x * x]).start(); return found[0]",
    "of a pool": "def f(x):\n    with futures.ThreadPoolExecutor(2) as pool: return sum(pool.map(pow, [x, 0], [2, 1]))",
    "in the order of completion": "def f(x):\n    with futures.ThreadPoolExecutor(initializer=print) as pool:\n"
    "        return sum(done.result() for done in futures.as_completed([pool.submit(pow, x, 2)]))",
    "of a pool, raising": "def f(x):\n    with futures.ThreadPoolExecutor() as pool: done = pool.submit(int, 'x')\n"
    "    return x * x if isinstance(done.exception(), ValueError) else 0",
    "of asyncio": "def f(x): return asyncio.run(asyncio.to_thread(pow, x, 2))",
    "of a loop": "async def g(x): return await asyncio.get_running_loop().run_in_executor(None, pow, x, 2)\n"
    "def f(x): return asyncio.run(g(x))",
}


@pytest.mark.parametrize("name", THREADS)
@pytest.mark.parametrize("alone", [False, True])
def test_threads_that_do_not_wait_for_one_another_run(box, name, alone):
    source = "import asyncio, threading\nfrom concurrent import futures\n" + THREADS[name]
    assert judge(GOOD._replace(source=source, one_process=alone), box).detail == ""


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


RIGHT = {  # program, tests
    "subclasses arrive as plain values": (
        """
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
Point = namedtuple("Point", "x y")
Colour = IntEnum("Colour", "RED")
def f(): return [Counter("aab"), OrderedDict(a=1), defaultdict(int, a=1), Point(1, 2), Colour.RED, type("S", (str,), {})("s")]
""",
        """
got = f()
assert got == [{'a': 2, 'b': 1}, {'a': 1}, {'a': 1}, (1, 2), 1, 's']
assert [type(one) for one in got] == [dict, dict, dict, tuple, int, str]
""",
    ),
    "iterators and views are what they are in Python": (
        """
def f(kind): return {'g': (n for n in [1, 2]), 'm': map(abs, [-1]), 'v': {1: 2}.values(), 'z': zip('a', 'b')}[kind]
""",
        """
assert list(f('g')) == [1, 2] and f('g') != [1, 2] and next(f('m')) == 1 and f('m') != [1]
assert list(f('v')) == [2] and f('v') != [2] and dict(f('z')) == {'a': 'b'} and bool(f('g'))
one = f('g')
assert list(one) == [1, 2] and list(one) == []
""",
    ),
    "arguments that it changes are changed": (
        "def f(a, d, s, t):\n    a.sort(); d['new'] = a; s.clear(); t[0].append(1)",
        """
a, d, s, t = [3, 1], {}, {1}, ([],)
assert f(a, d, s, t) is None
assert a == [1, 3] and d == {'new': [1, 3]} and s == set() and t == ([1],)
""",
    ),
    "an expected exception is recognised by its builtin class": (
        """
class Mine(ValueError): pass
def f(x): raise {0: ValueError('no'), 1: Mine(), 2: KeyError('k')}[x]
""",
        """
for x, kind in enumerate([ValueError, ValueError, KeyError]):
    try: f(x)
    except kind: pass
    else: assert False
""",
    ),
    "it keeps its state between calls": (
        "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)",
        "assert [f(9), f(9)] == [1, 2]",
    ),
    "it may use its folder and the standard library": (
        """
import bisect, collections, datetime, decimal, fractions, functools, hashlib, heapq, itertools, json, math, random, re, string, typing
from dataclasses import dataclass
@dataclass
class Node: value: int
def f(x):
    with open("note", "w") as file: file.write(str(x))
    return Node(int(open("note").read())).value + math.gcd(4, 6)
""",
        "assert f(2) == 4",
    ),
    "its main block is not executed": (
        "def f(x): return x\nif __name__ == '__main__':\n    f = None",
        "assert f(1) == 1",
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_passes(box, name):
    assert passes(*RIGHT[name], box)


@pytest.mark.parametrize("what", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_leaving_is_never_an_expected_exception(box, what):
    tests = "try: f(1)\nexcept Exception: pass\nexcept SystemExit: pass\nexcept KeyboardInterrupt: pass"
    assert not passes(f"def f(x): raise {what}", tests, box)


def test_an_exception_cannot_end_a_loop_of_the_tests(box):
    assert not passes("def f(x): raise StopIteration", "assert all(map(f, [1, 2])) and list(map(f, [1])) == []", box)


def test_tests_cannot_catch_the_end_of_the_program(box):
    result = judge(Program("import os\ndef f(x): os._exit(0)", "try: f(1)\nexcept BaseException: pass", ("f",)), box)
    assert result.status == "ended"


def test_helpers_of_the_tests_are_the_tests_own(box):
    job = Program(
        "def f(x): return 0\ndef helper(x): return 0", "assert f(2) == helper(2)", ("f",), "def helper(x): return x"
    )
    assert judge(job, box).status == "failed"


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
