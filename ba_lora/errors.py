"""Errors that a user can mend: one line that names the value and the remedy; the traceback only under --debug."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Something the user gave is wrong. The message is one line: what, where, what to do."""


def nearest(value: str, choices: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the choice closest to `value`, or "" when none is close."""
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def choose(what: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; otherwise raise UserError with the known values and the nearest one."""
    choices = list(choices)
    if value not in choices:
        raise UserError(f"{what} '{value}' is not known{nearest(value, choices)} (one of: {', '.join(choices)})")
    return value


def run_cli(main: Callable[[], int | None]) -> None:
    """Run an entry point and exit: status 0 when done, 2 on a UserError (one line), 130 on Ctrl-C.

    With --debug among the arguments every error keeps its traceback.
    """
    if "--debug" in sys.argv:
        sys.exit(main() or 0)
    try:
        status = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        status = 130
    except Exception as error:  # anything unforeseen is a fault of ours: still one line, and how to see the rest
        first = (str(error).strip().splitlines() or [""])[0]
        print(f"error: {type(error).__name__}: {first} (run again with --debug for the traceback)", file=sys.stderr)
        status = 1
    sys.exit(status)
