"""The parts of a completion: the blocks between fences, and the text outside them, with the slips that models make in Markdown.

A fence may be glued to code on either side, indented in a list, longer than three characters, of tildes, or not closed. A line of
code that looks like a fence stands in a string between triple quotes, so such lines are no fences, unless the caller asks for all.
"""

import re
import textwrap

_LIST = r"\s*(?:(?:[-*+>]|\d+[.)])\s+)*"
OPENING = re.compile(rf"^{_LIST}(`{{3,}}|~{{3,}})(.*)$")
_PYTHON = re.compile(r"(?:python[\d.]*|py\d?)(?=\s|$)", re.IGNORECASE)
_CODE = re.compile(
    r"(?:async )?def |class \w|@\w|import \w|from \w[\w.]* import|return\b|[A-Za-z_]\w*(?:: \w+)? = |[ \t]+\S"
)
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>|\A.*^[ \t]*</think>[ \t]*$", re.DOTALL | re.MULTILINE)
_END = re.compile(r"(?:<\|\w+\|>|</s>)[ \t]*$", re.MULTILINE)  # the end token of a template, written as text
_STRING = re.compile(
    r"""#[^\n]*|(\"{3}(?:[^\\]|\\.)*?\"{3}|'{3}(?:[^\\]|\\.)*?'{3})|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|\\.""",
    re.DOTALL,
)
_INLINE = re.compile(r"^\s*(`|<(?:code|pre)>)([^`]+)(`|</(?:code|pre)>)\s*$")


def clean(completion: str) -> str:
    """Return a completion with plain line ends, and without byte-order marks, form feeds at the margin, end tokens, and thoughts
    before the answer."""
    text = _END.sub("", re.sub("\r\n?", "\n", completion))
    return _THOUGHT.sub("", re.sub("^[\ufeff\f]+", "", text, flags=re.MULTILINE), count=1)


def split(text: str, strings: bool = True) -> tuple[list[str], list[str]]:
    """Return (the texts outside fences, the texts inside); the last fence may be open. strings: ignore fences in strings."""
    parts: list[list[str]] = [[]]
    mark = ""  # of the open fence
    hidden = _lines_in_strings(text) if strings else frozenset()
    for number, line in enumerate(text.split("\n")):
        fence = None if number in hidden else OPENING.match(line)
        glued = None if number in hidden or fence else _fence_at_the_end(line)
        if fence and (not mark or _closes(fence[1], mark)):
            reopened = mark and _PYTHON.match(fence[2].strip())  # the closing fence is missing
            parts += [[], []] if reopened else [[]]
            mark = "" if mark and not reopened else fence[1]
            code = _glued_code(fence[2]) if mark else fence[2].strip()
            if mark and code.rstrip().endswith(mark):  # all in one line
                parts += [[]]
                parts[-2].append(code.rstrip().removesuffix(mark))
                mark = ""
            elif code:
                parts[-1].append(code)
        elif glued and (not mark or _closes(glued[1], mark)):
            parts[-1].append(glued[0])
            parts.append([])
            mark = "" if mark else glued[1]
        else:
            parts[-1].append(line if mark else _INLINE.sub(r"\2", line))
    texts = ["\n".join(part) for part in parts]
    return texts[::2], [textwrap.dedent(part) for part in texts[1::2]]


def _fence_at_the_end(line: str) -> tuple[str, str] | None:
    """Return (what is before, the fence) if a line of text or code ends with its only fence."""
    before, fence, after = line.partition("```")
    rest = after.lstrip("`")
    if not fence or not before.strip() or not (not rest.strip() or _PYTHON.fullmatch(rest.strip())):
        return None
    return before, fence + "`" * (len(after) - len(rest))


def _closes(mark: str, opened: str) -> bool:
    return mark[0] == opened[0] and len(mark) >= len(opened)


def _glued_code(info: str) -> str:
    """Return the code behind an opening fence, "" for a language or a title."""
    language = _PYTHON.match(info.lstrip())
    rest = info.lstrip()[language.end() :] if language else info
    if rest.startswith(" ") and not rest.startswith("  "):
        rest = rest[1:]
    return rest if _CODE.match(rest) else ""


def _lines_in_strings(text: str) -> set[int]:
    """Return the numbers of the lines that begin between triple quotes, of strings that are closed."""
    found: set[int] = set()
    number = last = 0
    for match in _STRING.finditer(text):
        if match[1]:
            number += text.count("\n", last, match.start())
            after = number + match[1].count("\n")
            found |= set(range(number + 1, after + 1))
            number, last = after, match.end()
    return found
