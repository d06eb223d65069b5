"""Everything that would stop a run on this machine, found in seconds, before anything is loaded or written.

    python -m ba_lora.preflight CONFIG [options of train.py]

`sh scripts/ba-lora.sh CONFIG` makes the same checks on every machine of a run.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ..errors import UserError, one_line, redacted
from ..training import launch
from ..training.arguments import TrainArguments
from ..training.first_checks import problems
from . import evaluations, hub, space


def check(arguments: TrainArguments) -> None:
    """Raise the last finding as UserError, after printing the others, each on a line of its own; do nothing without findings."""
    *others, last = [*findings(arguments), None]
    if last is None and others:
        *others, last = others
    for text in others:
        print(f"error: {one_line(redacted(text))}", file=sys.stderr)
    if last is not None:
        raise UserError(last)


def findings(arguments: TrainArguments) -> list[str]:
    """Every reason why the run `arguments` cannot start on this machine, each with its remedy, in a fixed order."""
    found = [str(error) for error in problems(arguments)]
    checks = [partial(hub.findings, arguments), partial(space.findings, arguments)]
    if launch.is_first_machine():  # the others do not evaluate
        checks.append(partial(evaluations.findings, arguments))
    with ThreadPoolExecutor(len(checks)) as pool:  # they wait for servers and processes
        for texts in pool.map(_all_of, checks):
            found += [text for text in texts if text not in found]
    return found


def _all_of(check) -> list[str]:
    """The findings of one check; an error in it is one too."""
    found: list[str] = []
    texts: Iterator[str] = check()
    try:
        for text in texts:
            found.append(text)
    except UserError as error:
        found.append(str(error))
    return found
