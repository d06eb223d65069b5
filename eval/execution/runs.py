"""Code among prose: the runs of lines that are Python, found with the parser."""

import ast
import re
from collections.abc import Collection, Iterator, Sequence

from .definitions import NOT_PYTHON, defined, may_define, parses

START = re.compile(
    r"(?:async )?def \w+\s*\(|class \w+\s*[(:]|@\w|(?:import|from) \w|[A-Za-z_]\w*(?:\s*,\s*\w+)*\s*(?::[^=]*)?=|(?:if|try|for|while|with)\b.*:\s*$"
)
_MAY_GO_ON = re.compile(r"[:\\@]|'''|\"\"\"")  # in a line whose statement may continue on the next


def bare_code(text: str, names: Sequence[str]) -> str:
    """Return the first run of lines that is Python and defines a name; a run begins with a line that looks like code.

    A run extends as far as the parser allows: lines are removed at the end until the rest is Python. If no run defines a name:
    everything from the first line that looks like code.
    """
    for start, end, tree in runs(text, names):
        if not defined(tree).isdisjoint(names):
            return "\n".join(text.split("\n")[start:end])
    lines = text.split("\n")
    first = next((number for number, line in enumerate(lines) if START.match(line)), 0)
    return "\n".join(lines[first:])


def runs(text: str, names: Collection[str] | None = None) -> Iterator[tuple[int, int, ast.Module]]:
    """Yield (first line, line after the last, tree) of every run; with `names`, only as far as a run may define one of them.

    Each line is parsed only a few times: no run is tried from a statement of another one, since it would end where that ends.
    """
    lines = text.split("\n")
    last = len(lines)
    if names is not None:
        places = [match.start() for match in may_define(names).finditer(text)]
        last = text.count("\n", 0, places[-1]) if places else -1
    passed: set[int] = set()
    for start, line in enumerate(lines):
        if start > last:
            break
        if start in passed or not START.match(line) or (_stands_alone(line) and not parses(line)):
            continue
        end, tree = run_from(lines, start)
        if tree.body:
            yield start, end, tree
        passed |= {start + number for number in _first_lines(tree)}


def run_from(lines: list[str], start: int) -> tuple[int, ast.Module]:
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
