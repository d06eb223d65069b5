"""The layers to adapt as an option names them: PEFT's names, one pattern, or all-linear, and the numbers of the layers. Imports no
library."""

import re
from collections.abc import Sequence

from ..errors import UserError, short

ALL_LINEAR = "all-linear"
PLAIN = re.compile(r"[\w.-]+")  # a name; every other text is a pattern
RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")

Targets = Sequence[str] | str | None  # names; a pattern or ALL_LINEAR; None = the model's default


def targets_of(words: Sequence[str] | None) -> Targets:
    """The values of --target_modules as PEFT takes them: names as they are, a single pattern or ALL_LINEAR as one text.

    Raises UserError for a pattern that is not a regular expression, or that stands beside other values.
    """
    special = [word for word in words or () if word == ALL_LINEAR or not PLAIN.fullmatch(word)]
    if not special:
        return words
    if len(words) > 1:
        kind = "all linear layers" if special[0] == ALL_LINEAR else "a pattern"
        raise UserError(f"--target_modules {special[0]} is {kind}, which stands alone; leave the other values out")
    if special[0] != ALL_LINEAR:
        try:
            re.compile(special[0])
        except re.error as error:
            raise UserError(
                f"--target_modules {short(special[0])} is not a regular expression ({error}); correct it"
            ) from None
    return special[0]


def layers_of(text: str | None) -> tuple[int, ...] | None:
    """The numbers that --layers names: (0, 1, 2, 3, 7) for "0-3,7". Raises UserError for anything else."""
    if text is None:
        return None
    numbers = set()
    for part in text.split(","):
        found = RANGE.fullmatch(part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise UserError(
                f"--layers {short(text)}: {short(part)} is not a layer or a range; write numbers from 0, as 0-3,7"
            )
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def check_numbered(targets: Targets, layers: Sequence[int] | None) -> None:
    """UserError for layers beside a pattern, which PEFT does not take."""
    if layers is not None and isinstance(targets, str) and targets != ALL_LINEAR:
        raise UserError(
            f"--layers does not go with the pattern --target_modules {short(targets)}, which can name the layers itself; leave it out"
        )
