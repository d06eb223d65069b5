"""Compare the Python environment that runs this file with the tested ranges; environment.sh calls it. Changes nothing.

    python environment.py REQUIREMENTS-RANGES [EXTRA ...]

Prints one line for each package that differs and ends with status 1; status 0 if none does. Packages of an extra that is not
named may be missing. Needs only the standard library of Python 3.8, because the environment may hold nothing else.
"""

import re
import sys
from importlib import metadata

LOWEST = (3, 10)  # as in pyproject.toml
LINE = re.compile(r'(?P<name>[\w.-]+)>=(?P<lowest>[\d.]+),<(?P<below>[\d.]+)(?:; extra == "(?P<extra>\w+)")?')


def numbers(version):
    """'2.11.0a0+cu126' → (2, 11), without zeros at the end: a vendor's build of a version counts as that version."""
    found = [int(part) for part in re.match(r"[\d.]*", version).group().split(".") if part]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def differences(text, extras):
    """The lines to print for the content of a requirements-ranges.txt. Raises ValueError for a line of another form."""
    found = []
    if sys.version_info < LOWEST:
        found.append("Python {}.{} is here, and {}.{} or newer is needed".format(*sys.version_info[:2], *LOWEST))
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError("a line of the ranges is not NAME>=VERSION,<VERSION: " + line)
        name, lowest, below, extra = match.group("name", "lowest", "below", "extra")
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
