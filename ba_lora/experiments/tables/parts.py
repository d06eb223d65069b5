"""Pages with several tables, headings and notes. A page is a list of parts, which is written as Markdown or HTML."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...texts import markdown
from .formats import grid


class Part(NamedTuple):
    """A table of a page, in plain text. heading: "" goes on under the last one; words: leading columns that are words, not numbers."""

    heading: str
    titles: Sequence[str] = ()
    lines: Sequence[Sequence[str]] = ()
    words: int = 1
    notes: Sequence[str] = ()


def to_markdown(parts: Iterable[Part]) -> str:
    """Return the parts one below the other, with a blank line between blocks; "" if there are none."""
    blocks = []
    for part in parts:
        blocks += [f"## {markdown(part.heading)}"] if part.heading else []
        if part.titles:
            lines = [[*map(markdown, line[: part.words]), *line[part.words :]] for line in part.lines]
            blocks.append(grid(part.titles, lines, part.words))
        blocks += part.notes
    return "\n\n".join(blocks) + "\n" if blocks else ""
