"""Texts from files inside Markdown, LaTeX and CSV: whatever they hold, they show as text, and nothing in them takes effect.

A name in a result, a title, a path or a model's answer can hold a bar, a link, HTML, a TeX command, a formula of a spreadsheet or
a control sequence of a terminal.
"""

import re

from .errors import one_line

_MARKDOWN = re.compile(r"[\\`*\[\]|]|<(?=[A-Za-z/!?])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w+;)")
_LATEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{each: f"\\{each}" for each in "&%$#_{}"},
    **{"±": r"$\pm$", "–": "--", "‖": r"$\|$", "→": r"$\to$", "−": "$-$", "<": "$<$", ">": "$>$"},
}


def line(text: str) -> str:
    """`text` on one line: every run of blanks and line breaks is one blank, and control characters are escapes."""
    return one_line(" ".join(str(text).split()))


def markdown(text: str) -> str:
    """`text` for a paragraph, a title or a cell of a Markdown table."""
    return _MARKDOWN.sub(lambda found: {"<": "&lt;", "&": "&amp;"}.get(found[0], f"\\{found[0]}"), line(text))


def code(text: str) -> str:
    """`text` as a code span of Markdown, outside of a table."""
    text = line(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def latex(text: str) -> str:
    """`text` for LaTeX, outside of math."""
    escaped = "".join(_LATEX.get(each, each) for each in line(text))
    return f"{{}}{escaped}" if escaped[:1] in ("[", "*") else escaped  # after \\ these are its arguments


def latex_comment(text: str) -> str:
    """`text` as one line of comment."""
    return f"% {line(text)}"


def csv_cell(value):
    """A value for a cell of a CSV file. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if not isinstance(value, str) or not value.lstrip()[:1] or value.lstrip()[0] not in "=+-@\t\r":
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
