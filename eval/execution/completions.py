"""The program in a completion: in a fence, bare, among prose, or the rest of a function that the prompt began.

Completions are hostile: a sum of 10,000 terms or 100,000 minus signs is more than Python's parser handles, and a long enough text
can crash the interpreter. So `read_all` reads them in separate processes (`eval.harness.workers`), under limits. This module
executes nothing and uses only the standard library.
"""

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..harness import workers

SECONDS = 10  # for one completion

FENCE = re.compile(r"^\s*(?:```+|~~~+).*$")
START = re.compile(r"(?:async )?def \w+\s*\(|class \w+\s*[(:]|@\w|(?:import|from) \w|[A-Za-z_]\w*\s*=")
_MAY_GO_ON = re.compile(r"[:\\@]|'''|\"\"\"")  # in a line whose statement may continue on the next
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # raised by the parser


class Reading(NamedTuple):
    """The program of a completion; whether it is valid Python."""

    source: str
    parses: bool


def read_all(questions: Sequence[tuple[str, Sequence[str], str]], seconds: float = SECONDS) -> list[Reading | None]:
    """Return the reading of each (completion, names, prompt), in order; None if it took too long or ended its process."""
    return [reply and Reading(*reply) for reply in workers.ask("eval.execution.completions", questions, seconds)]


def read(question: tuple[str, Sequence[str], str]) -> Reading:
    """Read the arguments of `program_of` in a worker."""
    source = program_of(*question)
    return Reading(source, parses(source))


def program_of(completion: str, names: Sequence[str], prompt: str = "") -> str:
    """Return the program in a completion; it should define `names`.

    With a `prompt`, a completion that does not define them continues it, verbatim if the two together are Python; one that
    does follows the part of the prompt before the function (imports, helpers). Fenced blocks take precedence over bare text;
    the first block that defines a name counts, after the declarations of the blocks before it. Prose around bare code is
    removed, and so are assertions outside functions: they would test the program against the model's own beliefs.
    """
    text = completion.replace("\r\n", "\n")
    outside, blocks = split_fences(text)
    fenced = any(defines(block, names) for block in blocks)
    if prompt and starts_indented(text) and not fenced:
        for rest in (text, outside[0]):  # the prompt may have opened a fence, which then ends after the function
            if parses(prompt + rest):
                return prompt + rest
    outside, blocks = split_fences(text.lstrip())
    if prompt and not any(defines(part, names) for part in (*outside, *blocks)):
        return _continue(prompt, text, blocks)
    head = before_function(prompt, names) if prompt else ""
    for number, block in enumerate(blocks):
        if defines(block, names):
            return head + "\n\n".join([*map(_declarations, blocks[:number]), without_asserts(block)])
    for part in outside:
        if defines(part, names):
            return head + without_asserts(bare_code(part, names))
    return "\n\n".join(blocks) if blocks else text


def _continue(prompt: str, text: str, blocks: list[str]) -> str:
    if parses(prompt + text) or not blocks:
        return prompt + text
    return prompt + (blocks[0] if starts_indented(blocks[0]) else textwrap.indent(blocks[0], "    "))


def split_fences(text: str) -> tuple[list[str], list[str]]:
    """Return (the texts outside fences, the texts inside); the last fence may be open."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if FENCE.match(line):
            parts.append([])
        else:
            parts[-1].append(line)
    texts = ["\n".join(part) for part in parts]
    return texts[::2], [textwrap.dedent(part) if defines(textwrap.dedent(part)) else part for part in texts[1::2]]


def _definition(names: Sequence[str] | None) -> re.Pattern:
    known = "|".join(map(re.escape, names)) if names is not None else r"\w+"
    return re.compile(rf"^(?:async )?(?:def|class)\s+(?:{known})\b", re.MULTILINE)


def defines(text: str, names: Sequence[str] | None = None) -> bool:
    """Return True if a function (or class) with one of these names (None: any name) is defined at the left margin."""
    return _definition(names).search(text) is not None


def starts_indented(text: str) -> bool:
    """Return True if the first nonblank line is indented."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first[:1] in (" ", "\t")


def before_function(prompt: str, names: Sequence[str]) -> str:
    """Return the part of a prompt before the function to be written."""
    known = "|".join(map(re.escape, names))
    starts = [match.start() for match in re.finditer(rf"^(?:async )?def\s+(?:{known})\b", prompt, re.MULTILINE)]
    return prompt[: starts[-1]] if starts else prompt


# Bare code


def bare_code(text: str, names: Sequence[str]) -> str:
    """Return the first run of lines that is Python and defines a name; a run begins with a line that looks like code.

    A run extends as far as the parser allows: lines are removed at the end until the rest is Python. If no run defines a name:
    everything from the first line that looks like code. Each line is parsed only a few times: if a run defines no name, neither
    do the runs that start at its statements, since they would end where it ends.
    """
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if START.match(line)]
    definitions = [text.count("\n", 0, match.start()) for match in _definition(names).finditer(text)]
    passed: set[int] = set()
    for start in starts:
        if not definitions or start > definitions[-1]:
            break
        if start in passed or (_stands_alone(lines[start]) and not parses(lines[start])):
            continue
        end, tree = _run(lines, start)
        if defines(code := "\n".join(lines[start:end]), names):
            return code
        passed |= {start + number for number in _first_lines(tree)}
    return "\n".join(lines[starts[0] :]) if starts else text


def _run(lines: list[str], start: int) -> tuple[int, ast.Module]:
    """Return (the end of the run that begins at `start`, its tree)."""
    end = len(lines)
    while end > start:
        last = end  # without the blank lines at the end, which would otherwise be removed one by one
        while last > start + 1 and not lines[last - 1].strip() and not lines[last - 2].endswith("\\"):
            last -= 1
        try:
            return end, ast.parse("\n".join(lines[start:last]))
        except NOT_PYTHON as error:
            end = last
            number = getattr(error, "lineno", None)
            wrong = start + number - 1 if number else _first_too_much(lines, start, end)
            end = max(start, min(wrong, end - 1))
    return end, ast.Module([], [])


def _first_too_much(lines: list[str], start: int, end: int) -> int:
    """Return the line that exceeds the parser, which reports no line number (too deep, a NUL, half a surrogate pair)."""
    low, high = start, end  # lines[start:low] is not too much, lines[start:high] is
    while high - low > 1:
        middle = (low + high) // 2
        try:
            ast.parse("\n".join(lines[start:middle]))
            low = middle
        except NOT_PYTHON as error:
            low, high = (middle, high) if getattr(error, "lineno", None) else (low, middle)
    return high - 1


def _first_lines(tree: ast.Module) -> Iterator[int]:
    """Yield the lines, from 0, on which statements begin, including their decorators."""
    for node in tree.body:
        yield node.lineno - 1
        yield from (decorator.lineno - 1 for decorator in getattr(node, "decorator_list", ()))


def _stands_alone(line: str) -> bool:
    """Return True if a line is a whole statement or none, whatever follows; False if in doubt."""
    if _MAY_GO_ON.search(line):
        return False
    if re.search(r"[(\[{]", line):
        return not re.search(r"['\"#]", line) and all(line.count(a) == line.count(b) for a, b in ("()", "[]", "{}"))
    return True


# Changes to a program


def without_asserts(code: str) -> str:
    """Remove assertions and lone names outside functions; code that does not parse is unchanged."""

    def unwanted(node: ast.stmt) -> bool:
        return isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Name))

    return _without(code, unwanted) if parses(code) else code


def _declarations(code: str) -> str:
    """Return the imports, functions and classes of a block that precedes the program's."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return _without(code, lambda node: not isinstance(node, kinds)) if parses(code) else ""


def _without(code: str, unwanted) -> str:
    """Remove some top-level statements of Python code. The others keep their text, since unparsing fails on deep trees."""
    lines = [line.encode() for line in re.split("\r\n?|\n", code)]  # the parser counts columns in bytes
    for node in reversed(ast.parse(code).body):
        if not unwanted(node):
            continue
        first, last = node.lineno - 1, node.end_lineno - 1
        before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        alone = not before.strip() and (not after.strip() or after.lstrip().startswith(b"#"))
        lines[first : last + 1] = [after.lstrip() if alone else before + b"pass" + after]
    return b"\n".join(lines).decode()


def parses(code: str) -> bool:
    """Return True if the text is Python."""
    try:
        ast.parse(code)
    except NOT_PYTHON:
        return False
    return True


if __name__ == "__main__":
    workers.serve(lambda: read)
