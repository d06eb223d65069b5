"""Errors that a user can fix: one line that names the value and the remedy; the traceback only under --debug.

Exit statuses: 0 done, 1 something failed while running, 2 something that was given is wrong, 75 stopped by a signal with a
checkpoint written (sysexits.h: try again), 130 Ctrl-C, 143 SIGTERM.
"""

import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable

from .signals import Ending, Terminated, describe


class UserError(Exception):
    """Something the user gave is wrong. The message is one line: what, where, what to do."""

    status = 2


class RunFailure(UserError):
    """The machine, a file or the numbers gave out in a run; the message is one line here too."""

    status = 1


class DamagedFile(UserError, ValueError):
    """A file of the project's own is not what was written. ValueError too: who can do without the file may catch it as one."""


class Stopped(SystemExit):
    """A signal ended the run after a checkpoint was written. No Exception: nobody may take it for a failed run and go on."""

    STATUS = os.EX_TEMPFAIL

    def __init__(self, message: str, status: int = STATUS):
        super().__init__(status)
        self.message = message

    def tell(self) -> None:
        """Print the message, of several processes on the first one."""
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped: {self.message}", file=sys.stderr)


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
    """Run an entry point and exit with a status from this file's head; an error is one line.

    With --debug among the arguments every error keeps its traceback. SIGINT and SIGTERM end it as `signals` says. What a
    terminal's encoding lacks is printed as an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with Ending() as ending:
        try:
            status = main() or 0
        except Stopped as stopped:
            stopped.tell()
            status, ending.told = stopped.code, True
        except BaseException as error:
            if "--debug" in sys.argv:
                raise
            if ending.raised or isinstance(error, Terminated):  # whatever a library has made of the interruption
                ending.end()
            if isinstance(error, SystemExit):
                raise
            status = _tell(error)
    sys.exit(status)


def _tell(error: BaseException) -> int:
    """Print `error` as one line; returns the status to exit with."""
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
        return error.status
    if isinstance(error, KeyboardInterrupt):
        print(describe(signal.SIGINT), file=sys.stderr)
        return 128 + signal.SIGINT
    # anything unforeseen is a fault of ours: still one line, and how to see the rest
    first = (str(error).strip().splitlines() or [""])[0]
    print(f"error: {type(error).__name__}: {first} (run again with --debug for the traceback)", file=sys.stderr)
    return 1
