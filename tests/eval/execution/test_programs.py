"""Which program a completion holds, which tests need more than plain values, and pass@k."""

import ast
import itertools

import pytest

from ba_lora.errors import UserError
from eval.execution import inside
from eval.execution.completions import program_of
from eval.execution.definitions import parses
from eval.execution.programs import names_in_tests, pass_at_k

PROMPT = '''from typing import List


def helper(x):
    return x + 1


def f(xs: List[int]) -> int:
    """ Add one to the sum.
    >>> f([1, 2])
    4
    """
'''
BODY = "    return helper(sum(xs))\n"
WHOLE = "def f(xs: List[int]) -> int:\n    return helper(sum(xs))\n"
BARE = "def g(a):\n    return a\n\ndef f(xs):\n    return g(sum(xs)) + 1"


def value(source, call="f([1, 2])"):
    """Load the program as the sandbox does, and return the result of the call."""
    return eval(call, vars(inside.load(source, ("f",))))


# Completions that continue the prompt


@pytest.mark.parametrize(
    "completion",
    [
        BODY,
        "\n" + BODY,
        "    total = 0\n    for x in xs:\n        total += x\n    return helper(total)",
        BODY + "\n\nprint('more')\n",
        BODY + "\n\ndef other():\n    pass\n",
        "    s = '''\n```python\nx\n```\n'''\n    return helper(sum(xs))\n",
        "    s = '```'\n    return helper(sum(xs))\n",
    ],
)
def test_a_completion_without_the_function_continues_the_prompt_verbatim(completion):
    assert program_of(completion, ("f",), PROMPT) == PROMPT + completion
    assert value(program_of(completion, ("f",), PROMPT)) == 4


def test_a_continuation_is_kept_even_where_it_is_not_python():
    assert program_of("    return (", ("f",), PROMPT) == PROMPT + "    return ("
    assert program_of("I cannot do that.", ("f",), PROMPT) == PROMPT + "I cannot do that."


@pytest.mark.parametrize(
    "completion",
    [
        BODY + "```\nThis adds one.",
        "```python\n" + BODY + "```",
        "```python\nreturn helper(sum(xs))\n```",
        "Here is the body:\n```python\n" + BODY + "```\nIt adds one.",
    ],
)
def test_a_body_beside_a_fence_continues_the_prompt(completion):
    assert value(program_of(completion, ("f",), PROMPT)) == 4


def test_a_continuation_that_begins_the_function_anew_stays_a_continuation():
    completion = BODY + "\n\ndef f(xs):\n    return 0\n"
    assert program_of(completion, ("f",), PROMPT) == PROMPT + completion


# Completions with the whole function

FORMS = {
    "bare": WHOLE,
    "bare, Windows line ends": WHOLE.replace("\n", "\r\n"),
    "blank lines before": "\n\n" + WHOLE,
    "a blank before": " " + WHOLE,
    "a blank before prose and a fence": f" Here it is:\n\n```python\n{WHOLE}```",
    "an indented word before a fence": f"    Sure\n```python\n{WHOLE}```",
    "indented prose before a fence": f"    Here it is:\n```python\n{WHOLE}```",
    "fence": f"```python\n{WHOLE}```",
    "fence without a language": f"```\n{WHOLE}```",
    "fence of tildes": f"~~~python\n{WHOLE}~~~",
    "fence, py": f"```py\n{WHOLE}\n```\n",
    "indented fence": "1. The code:\n   ```python\n"
    + "".join(f"   {line}\n" for line in WHOLE.splitlines())
    + "   ```",
    "fence that is never closed": f"Sure!\n```python\n{WHOLE}",
    "fence that the prompt opened": f"{WHOLE}```\nThis adds one.",
    "prose around a fence": f"Sure, here it is:\n\n```python\n{WHOLE}```\n\nIt's the sum, plus one.",
    "a shell block first": f"```bash\npip install x\n```\n```python\n{WHOLE}```",
    "an example block after": f"```python\n{WHOLE}```\nUse it:\n```python\nprint(f(None))\n```",
    "a second version after": f"```python\n{WHOLE}```\nOr wrongly:\n```python\ndef f(xs):\n    return 0\n```",
    "imports in a block before": f"```python\nimport math\n```\nthen\n```python\n{WHOLE}```",
    "prose before bare code": f"Here's the function you asked for:\n\n{WHOLE}",
    "prose after bare code": f"{WHOLE}\nThis function's result is the sum plus one.",
    "prose on both sides": f"from this I made:\n{WHOLE}\nIt works, doesn't it?\n\n1. It adds.\n2. It's done.",
    "prose of one word after": f"{WHOLE}\nExplanation\n",
    "a wrong assertion after": f"{WHOLE}\nassert f([1]) == 7\n",
    "a wrong assertion in the fence": f"```python\n{WHOLE}\nassert f([1]) == 7\n```",
    "the prompt repeated": PROMPT + BODY,
    "the prompt repeated in a fence": f"```python\n{PROMPT}{BODY}```",
    "the next task begun": f"{WHOLE}\n\n### Instruction:\nWrite a function that doesn't",
    "cut within the next function": f"{WHOLE}\n\ndef other(x):\n    return (x",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_function_is_found_in_every_form_and_keeps_the_prompts_imports_and_helpers(form):
    assert value(program_of(FORMS[form], ("f",), PROMPT)) == 4


@pytest.mark.parametrize("form", FORMS)
def test_without_a_prompt_the_program_stands_alone(form):
    completion = FORMS[form].replace(WHOLE, BARE + "\n").replace(PROMPT + BODY, BARE + "\n")
    if "Windows" in form:
        completion = BARE.replace("\n", "\r\n")
    if "indented" in form:
        completion = "The code:\n   ```python\n" + "".join(f"   {line}\n" for line in BARE.splitlines()) + "   ```"
    assert value(program_of(completion, ("f",))) == 4


def test_a_program_that_is_python_as_it_stands_is_left_alone():
    source = "import sys\nsys.setrecursionlimit(5000)\nTABLE = [i for i in range(9)]\n\n\ndef f(x):  # a comment\n    return TABLE[x]"
    assert program_of(source, ("f",)) == source
    assert program_of(f"```python\n{source}\n```", ("f",)) == source


def test_helpers_of_an_earlier_block_are_kept_and_its_calls_are_not():
    completion = (
        "```python\ndef g(x):\n    return x\nprint(g())\n```\n```python\ndef f(xs):\n    return g(sum(xs)) + 1\n```"
    )
    assert value(program_of(completion, ("f",))) == 4


def test_a_function_cut_in_its_middle_stays_broken():
    assert not parses(program_of("def f(x):\n    return (x", ("f",)))
    assert not parses(program_of("```python\ndef f(x):\n    if", ("f",)))


def test_a_completion_without_code_is_kept():
    assert program_of("I do not know.", ("f",)) == "I do not know."
    assert program_of("", ("f",)) == ""


def test_the_name_must_be_the_whole_name():
    assert program_of("def f2(x):\n    return x\n", ("f",), PROMPT).startswith(PROMPT)


def test_code_inside_of_a_class_is_no_definition_of_the_function():
    completion = "class A:\n    def f(self):\n        return 1\n"
    assert program_of(completion, ("f",), PROMPT) == PROMPT + completion


@pytest.mark.parametrize("number", range(6))
def test_strange_text_is_no_error(number):
    text = ["\x00", "def f(:\n" * 50, "(" * 5000, "```" * 999, "\n" * 9999, "'''" + "x\n" * 999][number]
    for prompt in ("", PROMPT):
        assert isinstance(program_of("def f(x):\n" + text, ("f",), prompt), str)
        assert isinstance(program_of(text, ("f",), prompt), str)


def test_many_lines_of_prose_are_cut_in_reasonable_time():
    prose = "\n".join(f"It isn't line {number}, is it?" for number in range(300))
    assert value(program_of(prose + "\n" + BARE + "\n" + prose, ("f",))) == 4


# Tests


@pytest.mark.parametrize(
    ("tests", "setup", "reference", "names", "one_process"),
    [
        ("assert f(1) == 2", "", "def f(x): return 2", ("f",), False),
        ("assert set(f(1)) == {2}", "", "", ("f",), False),
        ("assert f(g(1)) == 2", "", "def f(x): pass\ndef g(x): pass", ("f", "g"), False),
        ("assert math.isclose(f(1), 2)", "import math", "", ("f",), False),
        ("import math\nassert math.isclose(f(1), 2)", "", "", ("f",), False),
        ("assert all(f(x) == x for x in [1])", "", "", ("f",), False),
        ("assert sum(10, 15) == 6", "", "def sum(a, b): return 6", ("sum",), False),
        ("assert f(root) == 1", "root = Node(1)", "class Node: pass\ndef f(x): pass", ("Node", "f"), True),
        ("assert f(Point(1)) == 1", "", "class Point: pass", ("Point", "f"), True),
        ("assert f(SIZE) == 1", "", "SIZE = 3", ("SIZE", "f"), True),
        ("assert f(g) == 1", "", "def g(): pass", ("f", "g"), True),
    ],
)
def test_names_in_tests(tests, setup, reference, names, one_process):
    assert names_in_tests(tests, setup, reference) == (names, one_process)


@pytest.mark.parametrize(
    ("tests", "names"),
    [
        ("assert max([1, 2]) == 2", ("max",)),
        ("assert sorted([1, 2]) == [2, 1]\nassert sorted([]) == []", ("sorted",)),
        ("assert max(f(1), 2) == 3", ("f",)),
        ("assert set(f(1)) == {1}", ("f",)),
        ("import math\nassert abs(sum(1, 2) - 3) < 1 and math.pi", None),
        ("assert sorted(list('ba')) == ['a', 'b']", None),
        ("assert True", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("reference", ["", "print 'Python 2'"])
def test_without_code_a_builtin_is_the_function_where_the_tests_call_no_other(tests, names, reference):
    if names:
        assert names_in_tests(tests, "", reference) == (names, False)
    else:
        with pytest.raises(UserError, match="row 3: the tests call no function.*give the row its 'code'"):
            names_in_tests(tests, "", reference, "row 3")


@pytest.mark.parametrize(
    "code",
    ["def sum(a, b): return 1", "async def sum(a, b): pass", "sum = lambda a, b: 1"],
    ids=["def", "async", "lambda"],
)
def test_a_builtins_name_is_the_programs_where_its_code_defines_it(code):
    assert names_in_tests("assert max(sum(1, 2), 0) == 1", "", code)[0] == ("sum",)


def test_tests_that_are_not_python_are_refused_with_their_place():
    with pytest.raises(UserError, match="row 3: the tests are not Python"):
        names_in_tests("assert f(", place="row 3")


# pass@k


def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples():
    for n, c in [(1, 0), (1, 1), (5, 2), (6, 6), (6, 1)]:
        for k in range(1, n + 1):
            choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_holds_for_many_samples():
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(10_000, 9_999, 2) == 1.0
    assert 0 < pass_at_k(10_000, 1, 1) == pytest.approx(1e-4)


@pytest.mark.parametrize("k", [0, 6])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(UserError, match="there are 5; raise --samples"):
        pass_at_k(5, 1, k)


def test_the_references_of_the_tests_above_are_python():
    assert ast.parse(PROMPT + BODY) and ast.parse(BARE) and value(PROMPT + BODY) == 4
