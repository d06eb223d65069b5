"""The verdicts on the differences in a figure, as a sentence for its caption: error bars over seeds do not show them."""

from collections import Counter
from collections.abc import Sequence

from eval.harness.statistics import EQUIVALENT, LESS, MORE

from ..tables.build import Comparison
from ..tables.formats import name_of

DECIDED = (LESS, MORE, EQUIVALENT)


def in_words(comparisons: Sequence[Comparison]) -> str:
    """Return what is decided in each column by name, and how many comparisons are not; "" without any.

    As in "Against pissa (table.md): test: full more, 2 of 3 undecided."
    """
    if not comparisons:
        return ""
    against = {made.reference.method for made in comparisons}
    is_own = all(made.variant.method == made.reference.method for made in comparisons)
    columns = {}
    for made in comparisons:
        columns.setdefault(made.column, []).append(made)
    said = "; ".join(f"{column}: {_column(family)}" for column, family in columns.items())
    return f"Against {'the unvaried row' if is_own else ', '.join(sorted(against))} (table.md): {said}."


def of_option(comparisons: Sequence[Comparison], option: str) -> list[Comparison]:
    """Return those of the rows that a figure over `option` shows: its values, and the unvaried rows."""
    return [made for made in comparisons if not made.variant.varied or made.variant.varied[0] == option]


def _column(family: Sequence[Comparison]) -> str:
    several = len({made.variant.model for made in family}) > 1
    parts = [
        f"{name_of(made.variant)}{f', {made.variant.model},' if several else ''} {made.verdict}"
        for made in family
        if made.verdict in DECIDED
    ]
    open_ones = Counter(made.verdict for made in family if made.verdict not in DECIDED)
    parts += [f"{count} of {len(family)} {word}" for word, count in open_ones.items()]
    return ", ".join(parts)
