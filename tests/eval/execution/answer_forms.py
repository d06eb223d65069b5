"""The forms in which a chat model writes a program, each as a function of (the whole program, the function's body, the prompt)."""

import textwrap

F = "```"


def fenced(code: str, language: str = "python", mark: str = F) -> str:
    return f"{mark}{language}\n{code.rstrip()}\n{mark}"


def listed(code: str) -> str:
    return "1. The code:\n\n" + textwrap.indent(fenced(code), "   ") + "\n\n2. That is it."


def headless(body: str) -> str:
    """A body whose first line has lost its indentation, as where an end of a token was stripped."""
    return body.lstrip()


FORMS = {
    "in a fence": lambda whole, body, prompt: fenced(whole),
    "in a fence among prose": lambda whole, body, prompt: (
        f"Sure! Here's the function:\n\n{fenced(whole)}\n\nIt's O(n), isn't it?"
    ),
    "bare": lambda whole, body, prompt: whole,
    "bare among prose": lambda whole, body, prompt: (
        f"Here's what I'd write:\n\n{whole}\n\nThis doesn't need imports.\n"
    ),
    "the body alone": lambda whole, body, prompt: body,
    "the body with prose after it": lambda whole, body, prompt: f"{body}\n\nThis returns what's asked for.\n",
    "the body in a fence": lambda whole, body, prompt: f"Here's the body:\n\n{fenced(body)}\n",
    "the body without its first indentation": lambda whole, body, prompt: headless(body),
    "the body at the margin": lambda whole, body, prompt: textwrap.dedent(body),
    "helpers in a block before": lambda whole, body, prompt: (
        f"First:\n{fenced('import math' + chr(10) + 'LIMIT = 10')}\nThen:\n{fenced(whole)}"
    ),
    "a usage block before": lambda whole, body, prompt: (
        f"Use it so:\n{fenced('from solution import *' + chr(10) + 'print(run(3))')}\nThe code:\n{fenced(whole)}"
    ),
    "a usage block after": lambda whole, body, prompt: f"{fenced(whole)}\nFor example:\n{fenced('print(run(3))  # 9')}",
    "usage in the same block": lambda whole, body, prompt: fenced(
        f"{whole}\n\n\nprint(undefined(3))\nassert 1 == 2\nn = int(input())"
    ),
    "a main guard": lambda whole, body, prompt: fenced(
        f"{whole}\n\n\nif __name__ == '__main__':\n    import doctest\n    doctest.testmod()"
    ),
    "a star import": lambda whole, body, prompt: fenced(f"from typing import *\n\n\n{whole}"),
    "an import from the future": lambda whole, body, prompt: fenced(f"from __future__ import annotations\n\n\n{whole}"),
    "after thoughts": lambda whole, body, prompt: (
        f"<think>\nMaybe\n{fenced('def run(): pass')}\nor not.\n</think>\n\n{fenced(whole)}"
    ),
    "in a list": lambda whole, body, prompt: listed(whole),
    "between [BEGIN] and [DONE]": lambda whole, body, prompt: f"[BEGIN]\n{whole}\n[DONE]\n",
    "glued to both fences": lambda whole, body, prompt: f"{F}python {whole.strip()}{F}\nDone.",
    "glued to a fence without a language": lambda whole, body, prompt: f"{F}{whole.strip()}\n{F}",
    "between tildes": lambda whole, body, prompt: fenced(whole, "python", "~~~"),
    "between four backticks": lambda whole, body, prompt: f"````\n{whole}\n````",
    "in a fence that is not closed": lambda whole, body, prompt: f"{F}python\n{whole}\n\nThis is what it does.",
    "with notes that read as Python": lambda whole, body, prompt: (
        f"{whole}\n\nTime: O(1)\nNote: simple\nreturn\n[DONE]\n"
    ),
    "cut in the next function": lambda whole, body, prompt: f"{whole}\n\n\ndef other(x):\n    return (x +",
    "after a skeleton": lambda whole, body, prompt: (
        f"Given:\n{fenced(prompt + '    pass')}\nFilled in:\n{fenced(whole)}" if prompt else fenced(whole)
    ),
    "a second version after it": lambda whole, body, prompt: (
        f"{fenced(whole)}\nOr shorter, which is wrong:\n{fenced(whole + chr(10) + 'raise SystemExit')}"
    ),
    "with Windows line ends and a byte-order mark": lambda whole, body, prompt: (
        "\ufeff" + fenced(whole).replace("\n", "\r\n")
    ),
}
