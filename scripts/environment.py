"""Compare the Python environment that runs this file with the tested ranges; environment.sh calls it. Changes nothing.

    python environment.py PYPROJECT.TOML [EXTRA ...]

Prints one line for each package that differs and ends with status 1; status 0 if none does. Packages of an extra that is not
named may be missing. Needs only the standard library of Python 3.8, because the environment may hold nothing else.
"""

import re
import sys
from importlib import metadata

LOWEST = (3, 10)  # as in pyproject.toml
OPENING = re.compile(r"(?P<group>\w+) = \[(?: #.*)?")
LINE = re.compile(r' *"(?P<name>[\w.-]+)(?:\[\w+\])?>=(?P<lowest>[\d.]+),<(?P<below>[\d.]+)",')
OWN = re.compile(r' *"ba-lora\[[\w,]+\]",')  # an extra made of others


def numbers(version):
    """'2.11.0a0+cu126' → (2, 11), without zeros at the end: a vendor's build of a version counts as that version."""
    found = [int(part) for part in re.match(r"[\d.]*", version).group().split(".") if part]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def ranges(text):
    """[(name, lowest, below, extra or None)] of a pyproject.toml: its dependencies and optional-dependencies.

    Python 3.10 has no reader of TOML, so each requirement is on a line of its own. Raises ValueError for a line of another form.
    """
    found, section, group = [], "", None
    for line in text.splitlines():
        if line.startswith("["):
            section, group = line.strip(), None
        opening = OPENING.fullmatch(line)
        optional = section == "[project.optional-dependencies]"
        if opening and (optional or (section, opening.group("group")) == ("[project]", "dependencies")):
            group = opening.group("group")
        elif line == "]":
            group = None
        elif group is None and optional and line and not line.startswith(("[", "#")):
            raise ValueError("an extra does not begin as NAME = [: " + line)
        elif group is not None and not OWN.fullmatch(line):
            match = LINE.fullmatch(line)
            if match is None:
                raise ValueError('a line of the ranges is not "NAME>=VERSION,<VERSION",: ' + line)
            found.append((*match.group("name", "lowest", "below"), group if optional else None))
    return found


def differences(text, extras):
    """The lines to print for the content of a pyproject.toml. Raises ValueError as `ranges` does."""
    found = []
    if sys.version_info < LOWEST:
        found.append("Python {}.{} is here, and {}.{} or newer is needed".format(*sys.version_info[:2], *LOWEST))
    for name, lowest, below, extra in ranges(text):
        wanted = f">={lowest},<{below}"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if extra is None or extra in extras:
                found.append(f"{name} is not installed; tested with {wanted}")
            continue
        if not numbers(lowest) <= numbers(version or "") < numbers(below):
            found.append(f"{name} {version} is installed; tested with {wanted}")
    return found


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        lines = differences(file.read(), sys.argv[2:])
    for line in lines:
        print("  " + line)
    sys.exit(1 if lines else 0)
