"""The program in a completion: in a fence, bare, among prose, or the rest of a function that the prompt began.

Completions are hostile: a sum of 10,000 terms or 100,000 minus signs is more than Python's parser handles, and a long enough text
can crash the interpreter. So `read_all` reads them in separate processes (`eval.harness.workers`), under limits. This module
executes nothing and uses only the standard library.
"""

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from ..harness import workers
from .blocks import clean, split
from .definitions import changed, defined, imported, is_stub, may_define, parse, parses, used
from .inside import statements
from .runs import bare_code, run_from, runs

SECONDS = 10  # for one completion


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


class Kind(IntEnum):
    """How well a piece of code defines the names; the best piece counts, of equal ones the first."""

    WHOLE = 0  # as it stands
    CUT = 1  # after lines that are not Python were removed
    IMPORTED = 2  # by an import
    STUB = 3  # as a function without a body
    BROKEN = 4  # in text that is not Python


class Piece(NamedTuple):
    """A piece of code: its kind, its text, and the other pieces of the completion, before and after it."""

    kind: Kind
    code: str
    before: list[str]
    after: list[str]


def program_of(completion: str, names: Sequence[str], prompt: str = "") -> str:
    """Return the program in a completion; it should define `names`.

    The program is the piece of code that defines a name best (`Kind`): the fenced blocks first, then the runs of Python in the
    bare text. What it uses but does not define is taken from the other pieces. With a `prompt`, it follows the part of the
    prompt before the function (imports, helpers); a completion that does not define the names continues the prompt.
    """
    text = clean(completion)
    at_margin = textwrap.dedent(text).lstrip()
    piece = min(_pieces(at_margin, names), key=lambda piece: piece.kind, default=None)
    if prompt and (not piece or piece.kind > Kind.IMPORTED or _begins_indented(text, names)):
        fenced = piece and piece.kind <= Kind.IMPORTED and piece.code in split(text)[1]
        if not fenced and (whole := _continuation(text, names, prompt)) is not None:
            return whole
    if not piece:
        blocks = split(text)[1]
        return prompt + text if prompt else "\n\n".join(blocks) or text
    head = before_function(prompt, names) if prompt else ""
    return head + "\n\n".join([*_helpers(piece, names), piece.code])


# The piece that defines the names


def _pieces(text: str, names: Sequence[str]) -> Iterator[Piece]:
    """Yield the pieces of code that define a name, until one is whole."""
    pattern, last = may_define(names), None
    for strings in (True, False):
        parts = split(text, strings)
        if parts == last:
            return
        last = parts
        outside, blocks = parts
        for number, block in enumerate(blocks):
            if pattern.search(block) and (found := _kind_of(block, names)):
                yield Piece(*found, blocks[:number], blocks[number + 1 :])
                if found[0] == Kind.WHOLE:
                    return
        for part in outside:
            if pattern.search(part) and (piece := _bare_piece(part, names)):
                yield piece
                if piece.kind == Kind.WHOLE:
                    return


def _kind_of(code: str, names: Sequence[str], whole: Kind = Kind.WHOLE) -> tuple[Kind, str] | None:
    """Return how a text defines the names, and the text without lines that are not Python; None if it does not."""
    tree = parse(code)
    if tree is None and whole == Kind.WHOLE:
        found = _kind_of(bare_code(code, names), names, Kind.CUT)
        return found or ((Kind.BROKEN, code) if _begins(names).search(code) else None)
    if tree is None:
        return None
    if not defined(tree).isdisjoint(names):
        return Kind.STUB if is_stub(tree, names) else whole, code
    return (Kind.IMPORTED, code) if not imported(tree).isdisjoint(names) else None


def _bare_piece(text: str, names: Sequence[str]) -> Piece | None:
    """Return the first run of bare text that defines a name, with the runs around it."""
    lines, before, best = text.split("\n"), [], None
    for start, end, _ in runs(text, names):
        code = "\n".join(lines[start:end])
        found = _kind_of(code, names)
        if found and (best is None or found[0] < best.kind):
            best = Piece(*found, list(before), ["\n".join(lines[end:])])
        if found and found[0] == Kind.WHOLE:
            return best
        before.append(code)
    if best is None and _begins(names).search(text):
        return Piece(Kind.BROKEN, bare_code(text, names), [], [])
    return best


def _begins(names: Sequence[str]) -> re.Pattern:
    known = "|".join(map(re.escape, names))
    return re.compile(rf"^(?:async )?(?:def|class)\s+(?:{known})\b", re.MULTILINE)


# What it needs of the others


def _helpers(piece: Piece, names: Sequence[str]) -> list[str]:
    """Return the statements of other pieces that define, import or fill what the program uses, in their order."""
    tree = parse(piece.code)
    if tree is None or not (piece.before or piece.after):
        return []
    offers: list[tuple[str, ast.stmt]] = []
    makers: dict[str, list[int]] = {}
    for side in (piece.before, piece.after):  # what comes before takes precedence
        own: dict[str, list[int]] = {}
        for statement in (each for part in side for each in _statements(part)):
            for name in changed(statement[1]):
                own.setdefault(name, []).append(len(offers))
            offers.append(statement)
        makers = own | makers
    wanted = [*(used(tree) | set(names)) - defined(tree) - imported(tree), "*"]  # "*": from MODULE import *
    seen, chosen = set(wanted), set()
    while wanted:
        for number in makers.get(wanted.pop(), ()):
            if number not in chosen:
                chosen.add(number)
                more = used(offers[number][1]) - seen
                seen |= more
                wanted += more
    return [offers[number][0].strip("\n") for number in sorted(chosen)]


def _statements(code: str) -> list[tuple[str, ast.stmt]]:
    """Return (text, tree) of the statements of a piece, as far as it is Python."""
    if not parses(code):
        lines = code.split("\n")
        code = "\n\n".join("\n".join(lines[start:end]) for start, end in _separate_runs(code))
    return [(text, node) for text, node in statements(code) if node is not None]


def _separate_runs(text: str) -> Iterator[tuple[int, int]]:
    done = 0
    for start, end, _ in runs(text):
        if start >= done:
            done = end
            yield start, end


# The rest of the prompt's function


def before_function(prompt: str, names: Sequence[str]) -> str:
    """Return the part of a prompt before the function to be written."""
    known = "|".join(map(re.escape, names))
    starts = [match.start() for match in re.finditer(rf"^(?:async )?def\s+(?:{known})\b", prompt, re.MULTILINE)]
    return prompt[: starts[-1]] if starts else prompt


def _begins_indented(text: str, names: Sequence[str]) -> bool:
    """Return True if the first line is indented, but not as the function's first line."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first[:1] in (" ", "\t") and not _begins(names).match(first.strip())


def _continuation(text: str, names: Sequence[str], prompt: str) -> str | None:
    """Return the prompt with the body that a completion gives, None if it gives none: as it stands if the two are Python, else
    with its indentation repaired, else without the lines after it that are not Python."""
    outside, blocks = split(text)
    # the text before the first fence, because the prompt may have opened one, which ends after the body
    parts = list(dict.fromkeys([text, *blocks, outside[0]]))
    bodies = [body for part in parts if part.strip() for body in _indentations(part, prompt)]
    for body in bodies:
        if (tree := parse(prompt + body)) and not is_stub(tree, names) and not _outside(tree):
            return prompt + body
    best, most = None, 0
    for body in bodies:
        lines = (prompt + body).split("\n")
        end, tree = run_from(lines, 0)
        end = min([end, *(node.lineno - 1 for node in _outside(tree))])
        kept = sum(bool(line.strip()) for line in lines[prompt.count("\n") : end])
        if kept > most and not is_stub(tree, names):
            best, most = "\n".join(lines[:end]), kept
    return best


def _outside(tree: ast.Module) -> list[ast.stmt]:
    """Return the statements outside functions that hold a `return`, which the parser lets pass."""
    others = (node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)))
    return [node for node in others if any(isinstance(each, ast.Return) for each in ast.walk(node))]


def _indentations(body: str, prompt: str) -> list[str]:
    """Return a body as it stands, with the indentation of all lines, and with that of its first line."""
    last = next((line for line in reversed(prompt.split("\n")) if line.strip()), "")
    indent = last[: len(last) - len(last.lstrip())] or "    "
    forms = [body, textwrap.indent(textwrap.dedent(body).strip("\n"), indent), indent + body.lstrip()]
    return list(dict.fromkeys(forms))


if __name__ == "__main__":
    workers.serve(lambda: read)
