"""The work of a reader, in calls: a count that no load of the machine changes, in place of seconds."""

import sys
from collections.abc import Callable

PIECES = 5_000


def count_calls(read: Callable[[str], object], text: str) -> int:
    """Return how many functions, Python's and C's, are called while `text` is read."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        read(text)
    finally:
        sys.setprofile(before)
    return count


def assert_linear(read: Callable[[str], object], piece: str) -> None:
    """Assert that a text of twice as many pieces takes about twice the calls at most. An exponential pattern hangs here."""
    half, whole = (count_calls(read, piece * number) for number in (PIECES // 2, PIECES))
    assert whole <= 2.2 * half, (half, whole)
