"""The program in a hostile completion: read under limits, and equal to the reference reading."""

import ast
import random

import pytest

from eval.execution import definitions
from eval.execution.completions import program_of, read_all
from eval.execution.definitions import defines
from eval.execution.programs import Task, score_records
from eval.execution.runs import START, bare_code
from tests.eval.execution.sandboxes import box_or_skip

# Runs of bare code, compared with their definition


def longest_run(text, names):
    """`bare_code` by its definition: every line that looks like code is tried, however often a line is parsed."""
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if START.match(line)]
    for start in starts:
        end = len(lines)
        while end > start:
            try:
                ast.parse("\n".join(lines[start:end]))
                break
            except SyntaxError as error:
                end = max(start, min(start + error.lineno - 1, end - 1))
        if defines(code := "\n".join(lines[start:end]), names):
            return code
    return "\n".join(lines[starts[0] :]) if starts else text


LINES = """def f(x):|    return x|def g(a):|    return (a|  )|class f:|    pass|x = 1|x = (|x = [1,|]|)|y = '''|'''|z = \"\"\"doc|\"\"\"
It isn't so, is it?|This is prose.|from the list|import os|from os import path|@dec|@dec(|# comment (|a = \\||if x:|    y = 2|else:
try:|except: pass|Note = that's it|k = {'a': 1}|a = 1; b = 2|async def f(x):|def f(x): return x|  indented prose|x = ')' + (|def f(:
1. It's done|assert f(1)|w = f'{x}'|q = 'a|Time = O(n)|s = (1)  # (|t: int = 3|while True:|    break"""
LINES = LINES.replace("\n", "|").split("|")


def test_bare_code_is_the_first_run_of_lines_that_is_python_and_defines_a_name():
    draw = random.Random(0)
    for _ in range(1200):
        text = "\n".join(draw.choices(LINES, k=draw.choice((3, 6, 12, 20))))
        assert bare_code(text, ("f",)) == longest_run(text, ("f",)), text


@pytest.mark.parametrize(
    "line", ["a = 1", "from the list of it", "x = (see it) is so", "Note = that's it", "import it, or not"]
)
def test_many_lines_that_look_like_code_are_parsed_a_few_times_each(line, monkeypatch):
    parsed, parse = [], ast.parse
    monkeypatch.setattr(definitions.ast, "parse", lambda text: parsed.append(len(text)) or parse(text))
    sizes = []
    for count in (200, 400):
        parsed.clear()
        text = "Here it is:\n\n" + f"{line}\n" * count + "\nThis is prose.\n\ndef f(x):\n    return x\nThe end."
        assert bare_code(text, ("f",)) == "def f(x):\n    return x"
        sizes.append(len(parsed))
    assert sizes[1] <= 2 * sizes[0] + 10


# Text that exceeds the parser

MINUS = "-" * 100_000
TOO_MUCH = {
    "4,000 times not": "x = " + "not " * 4000 + "1",
    "100,000 minus signs": f"x = {MINUS}1",
    "a sum of 30,000": "x = 1" + " + 1" * 30_000,
    "a literal of 6,000 digits": "x = " + "1" * 6000,
    "brackets, 500 deep": "x = " + "[" * 500 + "]" * 500,
    "a NUL": "x = '\x00'",
    "half a surrogate pair": "It is done \ud83d.",
    "10,000 comparisons to the power": "x = 1" + " ** 1" * 10_000,
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_line_that_is_more_than_the_parser_takes_is_cut_off_as_prose_is(what):
    code = "import math\n\n\ndef f(x):\n    return x\n\n"
    for text in (
        f"{code}{TOO_MUCH[what]}\n",
        f"{code}{TOO_MUCH[what]}\ny = 1\n",
        f"Note = {what}\n{code}{TOO_MUCH[what]}",
    ):
        assert bare_code(text, ("f",)).strip() == code.strip()


@pytest.mark.parametrize("what", TOO_MUCH)
@pytest.mark.parametrize("prompt", ["", "def f(x):\n"])
def test_no_completion_is_an_error(what, prompt):
    bad = TOO_MUCH[what]
    for text in (
        bad,
        f"def f(x):\n    {bad}",
        f"```python\n{bad}\n```\n```python\ndef f(x):\n    return x\n```",
        f"    {bad}",
    ):
        assert isinstance(program_of(text, ("f",), prompt), str)


def test_a_completion_that_takes_too_long_to_read_costs_no_other_one_its_program():
    slow = "@a\n" * 3000 + "def f(x:\n"
    good = "def f(x):\n    return x"
    readings = read_all([(good, ("f",), ""), (slow, ("f",), ""), (good, ("f",), "")], seconds=2)
    assert readings[1] is None
    assert [reading.source for reading in (readings[0], readings[2])] == [good, good]


# From completion to score

SUM, NOTS = " + 0" * 500, "not " * 800
RIGHT = {
    "a sum of 500": f"```python\ndef f(x):\n    return x{SUM}\n\nassert f(1) == 1\n```",
    "a sum of 500, bare": f"Here it is:\n\ndef f(x):\n    return x{SUM}\n\nassert f(1) == 1\nIt isn't slow.",
    "800 times not": f"```python\ndef f(x):\n    return x if {NOTS}1 else 0\nassert f(1) == 1\n```",
    "a chain of 500 elif": "```python\ndef f(x):\n    if x == -1:\n        return 0\n"
    + "".join(f"    elif x == -{n}:\n        return 0\n" for n in range(2, 500))
    + "    return x\nassert f(1) == 1\n```",
    "a chain of 300 methods": f"```python\ndef f(x):\n    return int(str(x){'.strip()' * 300})\nassert f(1)\n```",
    "a helper's sum in an earlier block": f"```python\ndef g(x):\n    return x{SUM}\n```\nand\n```python\ndef f(x):\n    return g(x)\n```",
    "a hexadecimal literal of 6,000 digits": f"```python\nBIG = 0x{'f' * 6000}\ndef f(x):\n    return x\nassert f(1) == 1\n```",
    "4,000 times not behind it": f"def f(x):\n    return x\n\n{TOO_MUCH['4,000 times not']}\n",
    "half a surrogate pair behind it": "def f(x):\n    return x\n\nDone \ud83d\n",
    "a NUL behind it": "def f(x):\n    return x\n\n\x00\n",
}
WRONG = {
    "100,000 minus signs": f"```python\ndef f(x):\n    return {MINUS}x\n```",
    "a sum of 30,000": "def f(x):\n    return x" + " + 0" * 30_000,
    "a literal of 6,000 digits": f"```python\ndef f(x):\n    return x if {'1' * 6000} else 0\n```",
    "half a surrogate pair": "```python\ndef f(x):\n    return x, '\ud83d'\n```",
    "a NUL": "def f(x):\n    return '\x00'",
    "it takes too long to read": "@a\n" * 3000 + "def f(x:\n",
}
KINDS = {
    "humaneval": Task(
        "f", "def check(c):\n    assert c(1) == 1\n\ncheck(f)\n", ("f",), prompt="def f(x):\n    ''' x '''\n"
    ),
    "mbpp": Task("f", "assert f(1) == 1\nassert f(2) == 2", ("f",)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_completions_fail_alone_and_right_ones_of_odd_size_pass(kind, monkeypatch):
    box_or_skip()
    monkeypatch.setattr("eval.execution.programs.read_all", lambda questions: read_all(questions, seconds=3))
    texts = RIGHT | {f"wrong: {what}": text for what, text in WRONG.items()}
    records = [{"id": what, "completion": text} for what, text in texts.items()]
    score, scored = score_records(records, {what: KINDS[kind]._replace(id=what) for what in texts})
    assert {line["id"]: line["correct"] for line in scored} == {what: what in RIGHT for what in texts}
    assert (score["n"], score["n_correct"]) == (len(texts), len(RIGHT))
    assert all(line["detail"] for line in scored if not line["correct"])
    assert "reading the completion took more" in scored[-1]["detail"]
