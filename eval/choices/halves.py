"""Two halves of a set: one to tune on, to see whether a score moves at all (docs/bias.md), and one to score. No sentence lies in both.

Items that share their wording form a group, and a group lies in one half as a whole, by a hash of its name alone.
"""

from ba_lora.files import digest

TUNED, SCORED = HALVES = ("tuned", "scored")


def half_of(*group: str) -> str:
    """The half of a group, by its name."""
    return HALVES[int(digest(group)[0], 16) % 2]


def frame_of(first: str, second: str) -> str:
    """The words that two sentences have in common before and behind what sets them apart, in small letters."""
    a, b = first.lower().split(), second.lower().split()
    shortest = min(len(a), len(b))
    before = next((n for n in range(shortest) if a[n] != b[n]), shortest)
    rest = shortest - before
    behind = next((n for n in range(rest) if a[-1 - n] != b[-1 - n]), rest)
    return " ".join([*a[:before], *a[len(a) - behind :]])
