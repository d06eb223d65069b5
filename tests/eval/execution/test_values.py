"""The values, functions and exceptions that pass between a program and its tests: as in one process, or as documented."""

import os
import threading

import pytest

from eval.execution import inside
from eval.execution.sandbox import Program, judge
from eval.execution.values import Functions, pack, unpack
from tests.eval.execution.sandboxes import box_or_skip


class Gone(BaseException):
    """The other process has ended."""


def gone(reason):
    raise Gone(reason)


def run(source: str, tests: str) -> None:
    """Execute tests of `f` against a program behind two pipes, in two threads in place of two sandboxes."""
    program = inside.load(source, ("f",))
    (requests, ask), (replies, reply) = os.pipe(), os.pipe()
    with (
        os.fdopen(requests, "rb") as requests,
        os.fdopen(ask, "wb") as ask,
        os.fdopen(replies, "rb") as replies,
        os.fdopen(reply, "wb") as reply,
    ):
        serving = inside.Peer(requests, reply, False, lambda name: getattr(program, name), gone, 1 << 20)
        checking = inside.Peer(replies, ask, True, None, gone, 1 << 20)

        def serve():
            try:
                while True:
                    serving.answer(serving.receive())
            except Gone:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            space = {"__name__": "tests", "f": lambda *args, **kwargs: checking.call("f", args, kwargs)}
            exec(compile(tests, "<tests>", "exec", dont_inherit=True), space)
        finally:
            ask.close()
            thread.join()


GIVEN_BACK = "def f(x): return x"
EQUAL = [  # these come back equal and of the same type
    *(
        "Fraction(1, 3)",
        "Decimal('1.50')",
        "Decimal('-Infinity')",
        "Decimal(10) ** 50",
        "date(2020, 2, 29)",
        "time(1, 2, 3, 4)",
    ),
    *(
        "datetime(2020, 1, 2, 3, 4, 5, 6)",
        "datetime(2020, 1, 2, tzinfo=timezone(timedelta(hours=2)))",
        "timedelta(-1, 2, 3)",
    ),
    *(
        "timezone.utc",
        "array('d', [0.5])",
        "UserList([1])",
        "UserDict(a=1)",
        "UserString('a')",
        "ChainMap({1: 2}, {3: 4})",
    ),
    *("memoryview(b'ab')", "bytearray(b'ab')", "slice(1, None, 2)", "...", "UUID(int=5)", "OrderedDict(a=1).keys()"),
    *("int", "str", "bool", "type(None)", "ValueError", "Fraction", "date", "OrderedDict", "[int, {float: (str,)}]"),
    *("[Fraction(1, 2), {Decimal(1): date(2020, 1, 1)}]", "{1: 2}.items()", "OrderedDict(a=1).items()"),
]
IMPORTS = """from array import array
from collections import ChainMap, OrderedDict, UserDict, UserList, UserString
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from uuid import UUID
"""


def test_values_of_the_standard_library_come_back_equal():
    tests = "".join(
        f"value = {text}\nassert f(value) == value and {'OrderedDict(' in text} | (type(f(value)) is type(value)), {text!r}\n"
        for text in EQUAL
    )
    run(GIVEN_BACK, IMPORTS + tests)


PLAIN = {  # program, tests: what holds in one process holds here
    "a fraction equals a float": ("def f(): return Fraction(1, 2)", "assert f() == 0.5 and abs(f() - 0.5) < 1e-9"),
    "a decimal equals an int": ("def f(): return Decimal(2)", "assert f() == 2 and abs(f() - 2) < 1e-6"),
    "a day equals a day": ("def f(): return date(2020, 1, 2)", "assert f() == date(2020, 1, 2) and f().year == 2020"),
    "a subclass is the plain type": ("class D(date): pass\ndef f(): return D(2020, 1, 2)", "assert type(f()) is date"),
    "the views of an ordered dict": (
        "def f(): d = OrderedDict(a=1); return d.keys(), d.values(), d.items()",
        "assert list(f()[0]) == ['a'] and sum(f()[1]) == 1 and f()[2] == {'a': 1}.items() and f()[0] == {'a'}",
    ),
    "a type as an argument": (
        "def f(x, kind): return isinstance(x, kind)",
        "assert f(1, int) and not f('1', (int, float))",
    ),
    "a type as the answer": ("def f(x): return type(x)", "assert f(1) == int and f(None) is type(None)"),
    "a builtin function": ("def f(g, x): return g(x)", "assert f(len, [1, 2]) == 2 and f(sum, {1, 2}) == 3"),
    "a function of a module": ("def f(g): return g(4)", "import math\nassert f(math.sqrt) == 2"),
    "a method of a type": ("def f(g, xs): return list(map(g, xs))", "assert f(str.upper, ['a']) == ['A']"),
    "a lambda": ("def f(g, x): return g(g(x))", "n = 3\nassert f(lambda v: v + n, 1) == 7"),
    "a function of the tests": ("def f(g): return g(1, b=2)", "def g(a, b): return [a, b]\nassert f(g) == [1, 2]"),
    "a partial": ("def f(g): return g(3)", "from functools import partial\nassert f(partial(pow, 2)) == 8"),
    "a key": ("def f(xs, key=None): return sorted(xs, key=key)", "assert f([-3, 1], key=lambda v: v * v) == [1, -3]"),
    "a function in a lazy answer": ("def f(g, xs): return map(g, xs)", "assert list(f(lambda v: -v, [1])) == [-1]"),
    "a function that calls the program": (
        "def f(g, x): return x if x < 1 else g(x - 1)",
        "assert f(lambda v: f(lambda w: w - 40, v) + 1, 3) == -38",
    ),
    "a function that is returned": ("def f(a): return lambda b: a + b", "assert f(1)(2) == 3 and callable(f(1))"),
    "a function that is given back": (GIVEN_BACK, "def g(): pass\nassert f(g) is g and f([g])[0] is g"),
    "a list of functions that stays": (
        "def f(gs): return gs[0]()",
        "gs = [lambda: 4]\nassert f(gs) == 4 and gs[0]() == 4",
    ),
    "an exception of a function of the tests": (
        "def f(g):\n    try: g()\n    except KeyError as error: return error.args[0]",
        "def g(): raise KeyError('k')\nassert f(g) == 'k'",
    ),
    "a deque that is changed": (
        "def f(d): d.append(1)",
        "from collections import deque\nd = deque()\nf(d)\nassert list(d) == [1]",
    ),
    "a bytearray that is changed": ("def f(b): b.append(65)", "b = bytearray()\nf(b)\nassert b == b'A'"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_holds_in_one_process_holds_between_two(name):
    source, tests = PLAIN[name]
    run(IMPORTS + source, IMPORTS + tests)


EXCEPTIONS = {  # what f does, the class that a test may expect, what it may ask
    "b'\\xff'.decode()": ("UnicodeDecodeError ValueError", "error.start == 0 and error.object == b'\\xff'"),
    "'\\xff'.encode('ascii')": ("UnicodeEncodeError UnicodeError", "error.reason"),
    "{}['k']": ("KeyError LookupError", "str(error) == \"'k'\" and error.args == ('k',)"),
    "{}[(1, 2)]": ("KeyError", "error.args == ((1, 2),)"),
    "open('/none')": ("FileNotFoundError OSError", "error.errno == 2 and error.filename == '/none'"),
    "__import__('json').loads('{')": ("ValueError", "'Expecting' in str(error)"),
    "Decimal(1) / 0": ("ZeroDivisionError ArithmeticError", "True"),
    "compile('(', '', 'exec')": ("SyntaxError", "'never closed' in str(error)"),
    "throw(Mine('a', 3))": ("ValueError", "str(error) == 'mine'"),
    "throw(ValueError('x' * 300))": ("ValueError", "len(str(error)) == 300"),
    "throw(ValueError(1, [2]))": ("ValueError", "error.args == (1, [2])"),
    "throw(ValueError(Mine))": ("ValueError", "'Mine' in str(error)"),
    "throw(ValueError())": ("ValueError", "error.args == () or str(error) == ''"),
}


@pytest.mark.parametrize("does", EXCEPTIONS)
def test_an_exception_is_of_the_class_that_tests_expect_and_says_the_same(does):
    kinds, asked = EXCEPTIONS[does]
    source = "class Mine(ValueError):\n    def __str__(self): return 'mine'\n    def __init__(self, a, b): self.a = a\n"
    source += f"def throw(error): raise error\ndef f(): return {does}"
    tests = "".join(
        f"try: f()\nexcept {kind} as error: assert {asked}, error\nelse: assert False\n" for kind in kinds.split()
    )
    run(IMPORTS + source, tests)


def test_a_program_cannot_send_functions_by_name_or_functions_that_it_was_not_given():
    mine = Functions(of_tests=True, ask=None)
    assert unpack(["named", "builtins.int"], mine) is int
    bad = [
        ["named", "builtins.eval"],
        ["named", "os.system"],
        ["named", "os._exit"],
        ["returned", 0],
        ["returned", "x"],
    ]
    bad += [["built", "os.system", "true"], ["built", "builtins.eval", "1"], ["built", ["builtins.eval"], "1"]]
    for data in bad:
        with pytest.raises((ValueError, TypeError, IndexError)):
            unpack(data, mine)
        with pytest.raises((ValueError, TypeError, IndexError)):
            unpack(data)
    assert pack(eval) == ["other"] and pack(int) == ["named", "builtins.int"]
    assert pack(eval, Functions(of_tests=False, ask=None)) == ["function", 0]


def test_a_sandboxed_program_calls_the_functions_of_the_tests():
    source = "def f(g, x):\n    return [g(y) for y in x], Fraction(len(x), 2)\nfrom fractions import Fraction"
    tests = (
        "assert f(lambda v: v * v, [2, 3]) == ([4, 9], 1.0)\ntry: f(len, [1])\nexcept TypeError: pass\nelse: assert 0"
    )
    assert judge(Program(source, tests, ("f",)), box_or_skip()).status == "passed"


# Statements of a program that fail

SQUARE = "def f(x):\n    return x * x\n\n"
SKIPPED = {
    "prose that reads as Python": "[DONE]\nTime: O(n)\nNote: simple\nInput: x = 2\nDone\nreturn\nbreak\n(a + b)\n",
    "a check": "assert f(1) == 7\n",
    "a call that fails": "print(f())\nmain(input())\n",
    "a module that is not installed": "import none_such\nfrom none_such.part import g\n",
    "an import of the answer": "from solution import f\n",
    "a late import from the future": "from __future__ import annotations\ndef g(x: Unknown): pass\n",
    "several on a line": "x = 1; assert 0; é = 'é'; assert é; y = 2;\n",
    "a loop that reads": "while True:\n    n = int(input())\n    print(f(n))\n",
}


@pytest.mark.parametrize("name", SKIPPED)
def test_a_statement_that_fails_costs_the_program_nothing_else(name, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: gone_input())
    for source in (SQUARE + SKIPPED[name], SKIPPED[name] + SQUARE):
        assert inside.load(source, ("f",)).f(3) == 9


def gone_input():
    raise EOFError


def test_a_script_that_exits_ends_the_program_and_what_it_defined_stays():
    program = inside.load(f"{SQUARE}import sys\nsys.exit(f(0))\nx = 1", ("f",))
    assert program.f(3) == 9 and not hasattr(program, "x")


def test_statements_around_a_failed_one_are_executed_and_an_import_from_the_future_holds_after_it():
    several = inside.load(SKIPPED["several on a line"])
    assert (several.x, several.y, several.é) == (1, 2, "é")
    late = inside.load(SKIPPED["a late import from the future"])
    assert late.g.__annotations__ == {"x": "Unknown"}


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("@undefined\ndef f(x): return x", NameError),
        ("def f(x): return x\nf = undefined(f)", NameError),
        ("import none_such\nclass f(none_such.Base): pass", ModuleNotFoundError),
        ("if undefined:\n    def f(x): return x", NameError),
        ("def f(x): return x\nfor f in undefined: pass", NameError),
        ("raise SystemExit(3)\ndef f(x): return x", SystemExit),
        ("def f(x): return x\ndef f(x) return", SyntaxError),
        ("def f(x): return x\nraise KeyboardInterrupt", KeyboardInterrupt),
    ],
)
def test_a_definition_that_fails_is_an_error(source, error):
    with pytest.raises(error):
        inside.load(source, ("f",))


def test_what_a_failed_statement_should_have_defined_is_undefined():
    program = inside.load("def g(x): return x\ng, h = undefined(g), 1\ndef f(x): return g(x)", ("f",))
    with pytest.raises(NameError):
        program.f(1)
