"""Errors that a user can fix: one line that names the value and the remedy; the traceback only under --debug.

Exit statuses: 0 success, 1 something failed while running, 2 wrong input, 75 stopped by a signal after writing a checkpoint
(sysexits.h: try again), 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import difflib
import itertools
import os
import re
import reprlib
import signal
import sys
from collections.abc import Callable, Iterable
from urllib.parse import quote

from .signals import Ending, Terminated, describe


class UserError(Exception):
    """The user gave something wrong. The message says what, where, and what to do.

    It is always one line: line breaks and other control characters, which values from a file may hold, become escapes. It
    holds no keys and no credentials of a URL, which servers repeat in their answers.
    """

    status = 2

    def __init__(self, message: object = ""):
        super().__init__(one_line(redacted(str(message))))


class RunFailure(UserError):
    """The machine, a file or the numbers failed in a run; again the message is one line."""

    status = 1


class DamagedFile(UserError, ValueError):
    """One of the project's own files differs from what was written. Also a ValueError, for callers that can do without the file."""


class Stopped(SystemExit):
    """A signal ended the run after a checkpoint was written. Not an Exception, so that nothing treats it as a failed run."""

    STATUS = os.EX_TEMPFAIL

    def __init__(self, message: str, status: int = STATUS):
        super().__init__(status)
        self.message = message

    def tell(self) -> None:
        """Print the message, on rank 0 only."""
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped: {self.message}", file=sys.stderr)


def one_line(text: str) -> str:
    """`text` with escapes for line breaks, control characters and half surrogate pairs: it prints as one line anywhere."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


SECRETS = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")  # environment variables
HIDDEN = "[hidden]"
_CREDENTIALS = re.compile(r"(?<=://)[^\s\"'<>]*@")  # to the last @: a password may hold one, and a slash
_KEYS = re.compile(
    r"\bsk-[\w*-]{12,}|\bhf_[A-Za-z0-9]{30,}|(?<=[Bb]earer )[\w.~+/=*-]{6,}"
    r"|(?<=[Bb]asic )(?=\w*(?:[a-z][A-Z]|[0-9+/=]))[\w+/=]{6,}"  # base64, unlike a word
)


def redacted(text: str) -> str:
    """`text` without the keys in the environment (SECRETS), anything that looks like one, and the credentials of URLs."""
    for key in filter(None, map(os.environ.get, SECRETS)):
        for form in (key.strip(), quote(key.strip(), safe="")):
            text = text.replace(form, HIDDEN) if len(form) >= 8 else text  # shorter: "none" and the like
    return _KEYS.sub(HIDDEN, _CREDENTIALS.sub(f"{HIDDEN}@", text))


def shortened(text: str, length: int = 300) -> str:
    """The first `length` characters of a name for a message."""
    return text if len(text) <= length else f"{text[:length]}..."


def short(value) -> str:
    """`value` for a message: its repr, on one line of at most 60 characters."""
    try:
        text = repr(value) if isinstance(value, str | int | float) else _PARTS.repr(value)
    except ValueError:
        text = "a whole number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


class _Parts(reprlib.Repr):
    """The beginning of a value's repr: aliases in YAML can make a small file's value endless in print."""

    def repr_dict(self, value, level):
        if level <= 0:
            return "{...}"
        parts = (f"{self.repr1(key, level - 1)}: {self.repr1(each, level - 1)}" for key, each in value.items())
        return "{" + ", ".join(itertools.islice(parts, self.maxdict)) + "}"


_PARTS = _Parts()
_PARTS.maxstring = _PARTS.maxother = _PARTS.maxlong = 60


def nearest(value: str, choices: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the choice closest to `value`, or "" when none is close."""
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def whole_number(name: str, default: int, lowest: int = 1) -> int:
    """The whole number in the environment variable `name`, or `default`. Raises UserError for anything else."""
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or int(text) < lowest:
        raise UserError(f"{name} is '{text}'; give a whole number of at least {lowest}")
    return int(text)


def choose(what: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; otherwise raise UserError with the known values and the nearest one."""
    choices = list(choices)
    if value not in choices:
        raise UserError(f"{what} '{value}' is not known{nearest(value, choices)} (one of: {', '.join(choices)})")
    return value


CALLED: dict[str, str] = {}  # "python -m ba_lora.chat" → "ba-lora chat", if the command ba-lora was given


def as_called(text: str) -> str:
    """`text` of a --help with the command as the user called it."""
    for name, called in CALLED.items():
        text = text.replace(name, called)
    return text


class Parser(argparse.ArgumentParser):
    """A parser of options that raises UserError, so that its errors too are one line without keys and credentials.

    prog, usage and epilog name the command as a module; --help shows it as it was called.
    """

    def __init__(self, *args, **more):
        names = {key: as_called(more[key]) for key in ("prog", "usage", "epilog") if more.get(key)}
        super().__init__(*args, **more | names)

    def error(self, message: str):
        raise UserError(message)

    def parse_args(self, args=None, namespace=None):
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            self.refuse(rest)
        return known

    def refuse(self, words: list[str]):
        """Raise UserError for words that are no option of this parser or of its subcommands. Their values are not repeated."""
        inner = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        parsers = [self, *(parser for action in inner for parser in action.choices.values())]
        word = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
        if not word.startswith("-"):
            raise UserError(f"unknown argument '{shortened(word)}'; see --help")
        owners = [
            name for action in inner for name, each in action.choices.items() if word in each._option_string_actions
        ]
        known = nearest(word, {name for parser in parsers for name in parser._option_string_actions})
        if owners:
            known = f" here; it belongs to {', '.join(owners)}"
        raise UserError(f"unknown option {shortened(word)}{known}; see --help")


def run_cli(main: Callable[[], int | None]) -> None:
    """Run an entry point and exit with one of the statuses above; an error is printed as one line.

    With --debug among the arguments, every error shows its traceback. SIGINT and SIGTERM end it as described in `signals`.
    Characters missing from the terminal's encoding are printed as escapes.
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
            if ending.raised or isinstance(error, Terminated):  # whatever a library turned the interruption into
                ending.end()
            if isinstance(error, SystemExit):
                raise
            status = _tell(error)
    sys.exit(status)


def _tell(error: BaseException) -> int:
    """Print `error` as one line; return the exit status."""
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
        return error.status
    if isinstance(error, KeyboardInterrupt):
        print(describe(signal.SIGINT), file=sys.stderr)
        return 128 + signal.SIGINT
    # an unforeseen error is our fault: still one line, with how to see the rest
    first = (str(error).strip().splitlines() or [""])[0]
    print(
        f"error: {type(error).__name__}: {one_line(redacted(first))} (run again with --debug for the traceback)",
        file=sys.stderr,
    )
    return 1
