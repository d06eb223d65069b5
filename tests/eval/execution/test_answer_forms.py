"""Programs of unusual form, judged in the sandbox: right ones pass, wrong and hostile ones do not."""

import pytest

from eval.execution.completions import program_of
from eval.execution.programs import Task, score_records
from eval.execution.sandbox import Limits
from tests.eval.execution.answer_forms import FORMS, F, fenced
from tests.eval.execution.sandboxes import box_or_skip

PROMPT = (
    'from typing import List\n\n\ndef cube(x: int) -> int:\n    """ The third power.\n    >>> cube(2)\n    8\n    """\n'
)
CODE = "def cube(x):\n    return x ** 3\n"
WRONG = "def cube(x):\n    return x ** 2\n"
TASKS = {
    "humaneval": Task(
        "cube",
        "def check(candidate):\n    assert candidate(2) == 8\n    assert candidate(-1) == -1\n\ncheck(cube)\n",
        ("cube",),
        prompt=PROMPT,
        setup="from typing import List\n\n\n",
    ),
    "mbpp": Task("cube", "assert cube(2) == 8\nassert cube(-1) == -1", ("cube",)),
}
LIMITS = Limits(cpu=3, wall=6.0, memory=512 << 20)
INNER = f'def cube(x):\n    """Third power.\n\n    {F}\n    cube(2)\n    {F}\n    """\n    return x ** 3\n'

BOUND = {  # how the name is bound
    "a lambda": "cube = lambda x: x ** 3",
    "an annotated lambda": "from typing import Callable\ncube: Callable = lambda x: x ** 3",
    "a partial": "from functools import partial\ncube = partial(lambda n, x: x ** n, 3)",
    "an alias": "def third(x):\n    return x ** 3\ncube = third",
    "a chain of names": "def third(x):\n    return x ** 3\npower = cube = third",
    "one of a tuple": "square, cube = (lambda x: x * x), (lambda x: x ** 3)",
    "a callable object": "class Cube:\n    def __call__(self, x):\n        return x ** 3\n\ncube = Cube()",
    "a bound method": "class Powers:\n    def cube(self, x):\n        return x ** 3\n\ncube = Powers().cube",
    "a static method": "class Powers:\n    @staticmethod\n    def third(x):\n        return x ** 3\ncube = Powers.third",
    "a class": "class cube(int):\n    def __new__(cls, x):\n        return int.__new__(cls, x ** 3)",
    "under if": "import sys\nif sys.version_info >= (3, 8):\n    def cube(x):\n        return x ** 3\nelse:\n    cube = None",
    "under try": "try:\n    from none_such import cube\nexcept ImportError:\n    def cube(x):\n        return x ** 3",
    "under with": "import contextlib\nwith contextlib.suppress(OSError):\n    def cube(x):\n        return x ** 3",
    "in a loop": "for n in (2, 3):\n    def cube(x, n=n):\n        return x ** n",
    "by exec": "exec('def cube(x): return x ** 3')",
    "in the globals": "globals()['cube'] = lambda x: x ** 3",
    "decorated": "import functools\n\n\n@functools.lru_cache(maxsize=None)\ndef cube(x):\n    return x ** 3",
    "defined twice": f"{WRONG}\n{CODE}",
    "with tabs": "def cube(x):\n\treturn x ** 3",
    "in one line": "def cube(x): y = x; return y ** 3",
    "after a coding cookie": f"# -*- coding: latin-1 -*-\n{CODE}",
    "with a walrus and defaults": "def cube(x, *rest, k=lambda y=1: y, **more):\n    if (n := x) is not None: return [*[n ** 3]][0]",
    "with awkward strings": "def cube(x):\n    d = {'a': f'''{x!r:>{5}}'''}\n    return int(f\"{d['a']}\") ** 3",
    "by an event loop": "import asyncio\nasync def third(x):\n    return x ** 3\ndef cube(x):\n    return asyncio.run(third(x))",
    "with a fence in its docstring": INNER,
    "with a fence in a string": f"TICKS = '''\n{F}\n'''\n{CODE}",
    "as a subclass of int": "class Whole(int): pass\ndef cube(x):\n    return Whole(x ** 3)",
    "as a Fraction": "from fractions import Fraction\ndef cube(x):\n    return Fraction(x ** 3)",
    "as a Decimal": "from decimal import Decimal\ndef cube(x):\n    return Decimal(x) ** 3",
    "with a table that is filled": "CUBES = {}\nfor n in range(-9, 9):\n    CUBES[n] = n ** 3\ndef cube(x):\n    return CUBES[x]",
}
PIECES = {  # over several blocks, or with text around
    "a constant before": f"{fenced('N = 3')}\nthen\n{fenced('def cube(x): return x ** N')}",
    "an annotated constant before": f"{fenced('N: int = 3')}\nthen\n{fenced('def cube(x): return x ** N')}",
    "a constant of a constant before": f"{fenced('M = 1')}\n{fenced('N = M + 2')}\n{fenced('def cube(x): return x ** N')}",
    "a table before": f"{fenced('T = {}' + chr(10) + 'for n in range(-3, 9): T[n] = n ** 3')}\n{fenced('def cube(x): return T[x]')}",
    "a list before": f"{fenced('T = []' + chr(10) + 'T.append(3)')}\n{fenced('def cube(x): return x ** T[0]')}",
    "a guarded import before": (
        f"{fenced('try:' + chr(10) + '    from math import prod' + chr(10) + 'except ImportError:' + chr(10) + '    prod = None')}\n"
        f"{fenced('def cube(x): return prod([x] * 3)')}"
    ),
    "an aliased import before": f"{fenced('import math as m')}\n{fenced('def cube(x): return m.prod([x] * 3)')}",
    "a star import before": f"{fenced('from math import *')}\n{fenced('def cube(x): return prod([x] * 3)')}",
    "a helper before": f"{fenced('def third(x): return x ** 3')}\n{fenced('def cube(x): return third(x)')}",
    "a helper after": f"{fenced('def cube(x): return third(x)')}\nwhere\n{fenced('def third(x): return x ** 3')}",
    "a helper before with prose in its block": f"{fenced('def third(x):' + chr(10) + '    return x ** 3' + chr(10) + 'This is it.')}\n"
    + fenced("def cube(x): return third(x)"),
    "a missing module before": f"{fenced('import none_such as ns')}\nWithout it:\n{fenced(CODE)}",
    "a late future import": f"{fenced('import math')}\n{fenced('from __future__ import annotations' + chr(10) + CODE)}",
    "a helper and prose, bare": "import math\n\nNow the function, that's all:\n\ndef cube(x): return math.prod([x] * 3)\n",
    "a bare helper after": "def cube(x):\n    return third(x)\n\nIt's helped by:\n\ndef third(x):\n    return x ** 3\n\nDone.",
    "a transcript before": f"{F}\n>>> cube(2)\n8\n{F}\n\n{fenced(CODE)}",
    "a shell block before": f"{fenced('pip install none-such', 'bash')}\n{fenced(CODE)}",
    "a draft that is cut": f"{fenced('def cube(x):' + chr(10) + '    return (x **')}\nAgain:\n{fenced(CODE)}",
    "a stub before": f"{fenced('def cube(x):' + chr(10) + '    # your code' + chr(10) + '    pass')}\n{fenced(CODE)}",
    "an ellipsis before": f"{fenced('def cube(x): ...')}\n{fenced(CODE)}",
    "a script that reads": fenced(f"{CODE}\nn = int(input('n: '))\nprint(cube(n))"),
    "a script that exits": fenced(f"import sys\n{CODE}\nprint(cube(2))\nsys.exit(0)"),
    "inline code": "`def cube(x): return x ** 3`",
    "between tags": f"<code>\n{CODE}</code>",
    "one line between fences": f"{F}def cube(x): return x ** 3{F}",
    "a fence behind prose": f"Here it is: {F}python\n{CODE}{F}",
    "a fence with a title": f'{F}python title="cube.py"\n{CODE}{F}',
    "a missing closing fence before usage": f"{F}python\n{CODE}\nUse it:\n{F}python\nprint(cube(3))\n{F}",
    "a closing fence with prose": f"{F}python\n{CODE}{F} That's it.",
    "prose after a continued line": "def cube(x):\n    return x * \\\n        x ** 2\n\nIt's done \\\nas you see.",
    "a form feed": f"\x0cimport math\n\x0c\n{CODE}",
    "carriage returns alone": CODE.replace("\n", "\r"),
    "a byte-order mark in the fence": f"{F}python\n\ufeff{CODE}{F}",
    "an end token after the code": CODE.rstrip() + "<|im_end|>",
    "an end token in a line of its own": f"{CODE}</s>\nIt's more (",
    "a JSON block before": f"{fenced('{}', 'json')}\n{fenced(CODE, 'Python')}",
    "a fence in a comment": fenced(f"# {F} as in Markdown\n{CODE}"),
    "a test class": fenced(
        f"import unittest\n{CODE}\nclass T(unittest.TestCase):\n    def test(self): pass\nunittest.main()"
    ),
    "a quotation mark that is open": f"{fenced('x = ' + chr(34) * 3, 'text')}\n{fenced(CODE)}",
}
RIGHT = {name: fenced(code) for name, code in BOUND.items()} | PIECES
RIGHT |= {f"{name}, bare": code for name, code in BOUND.items() if not name.startswith(("by exec", "in the globals"))}
RIGHT |= {f"form: {name}": form(CODE, "    return x ** 3\n", PROMPT) for name, form in FORMS.items()}
ONLY_A_PROMPT = ("form: the body",)  # tells what a body belongs to

BODIES = {
    "with another indentation": "  return x ** 3\n",
    "of two lines, the first at the margin": "y = x\n    return y ** 3",
    "of two lines at the margin": "y = x\nreturn y ** 3\n\nThat's all.",
    "in a fence that the prompt opened": f"    return x ** 3\n{F}\nDone",
    "glued to that fence": f"    return x ** 3{F}\nIt's done.",
    "before a list of terms": "    return x ** 3\n\n- It's short.\n- It's fast.",
    "cut in the next function": "    return x ** 3\n\n\ndef other(x):\n    return (x",
}

BAD = {
    "a wrong one first": f"{fenced(WRONG)}\nor\n{fenced(CODE)}",
    "another name": fenced("def cubic(x): return x ** 3"),
    "a method": fenced("class A:\n    def cube(self, x):\n        return x ** 3"),
    "a nested function": fenced("def make():\n    def cube(x):\n        return x ** 3\n    return cube"),
    "an undefined decorator": fenced(f"@fast\n{CODE}"),
    "an undefined wrapper": fenced(f"{CODE}cube = fast(cube)"),
    "a helper that nobody wrote": fenced("def cube(x): return third(x)"),
    "an import that does not exist": fenced("from solution import cube"),
    "only in a comment": fenced("# def cube(x): return x ** 3"),
    "only in thoughts": f"<think>\n{fenced(CODE)}\n</think>\nI can't.",
    "only a call": fenced("print(cube(2))  # 8"),
    "no code": "I cannot help with that.",
    "nothing": "",
    "a fence alone": F,
    "a stub": fenced("def cube(x):\n    pass"),
    "the prompt alone": fenced(PROMPT),
    "broken": fenced("def cube(x) return x ** 3"),
    "an early exit": fenced(f"import os\n{CODE}os._exit(0)"),
    "an answer that equals everything": fenced(
        "class Any:\n    def __eq__(self, other): return True\ndef cube(x): return Any()"
    ),
    "5,000 fences": f"{F}\n" * 5000 + WRONG,
    "a long line of backticks": "`" * 100_000 + "\n" + WRONG,
    "a sum of 3,000": f"Here:\n\nx = 1{' + 1' * 3000}\n{WRONG}\nThat is it.",
    "a deep list": fenced(f"X = {'[' * 90}{']' * 90}\n{WRONG}"),
    "half a surrogate pair": f"Look \ud83d\n{WRONG}\nend \ud83d",
    "a NUL": f"{WRONG}\x00\n",
}


@pytest.fixture(scope="module", autouse=True)
def box():
    box_or_skip()


def verdicts(task: Task, completions: dict[str, str]) -> dict[str, str]:
    """Each completion's name → "" if it passed, else why not."""
    records = [{"id": name, "completion": text} for name, text in completions.items()]
    _, lines = score_records(records, {name: task._replace(id=name) for name in completions}, limits=LIMITS)
    return {line["id"]: "" if line["correct"] else f"{line['status']}: {line['detail']}" for line in lines}


def runs_in_this_process(source: str) -> bool:
    """True if the program gives the right answers: a cheap judge of harmless programs."""
    from eval.execution.inside import load

    cube = load(source, ("cube",)).cube
    return cube(2) == 8 and cube(-1) == -1


@pytest.fixture(scope="module")
def no_input():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.input", lambda *_: int("no input"))
        yield


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_is_read_in_every_form(name, no_input):
    if not name.startswith(ONLY_A_PROMPT):
        assert runs_in_this_process(program_of(RIGHT[name], ("cube",)))
    assert runs_in_this_process(program_of(RIGHT[name], ("cube",), PROMPT))


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_read_in_every_form(name):
    assert runs_in_this_process(program_of(BODIES[name], ("cube",), PROMPT))


@pytest.mark.parametrize("kind", TASKS)
def test_no_wrong_program_passes(kind):
    assert [name for name, said in verdicts(TASKS[kind], BAD).items() if not said] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
def test_every_right_program_passes_in_the_sandbox(kind):
    right = (
        RIGHT | BODIES if kind == "humaneval" else {n: t for n, t in RIGHT.items() if not n.startswith(ONLY_A_PROMPT)}
    )
    assert len(right) >= 101
    assert {name: said for name, said in verdicts(TASKS[kind], right).items() if said} == {}
