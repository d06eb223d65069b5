"""Runs inside the sandbox: the program's process, the checker's process, and the plain values that pass between them.

`serve` executes the program and answers calls; `check` executes the tests, whose calls to the program's functions go over a
pipe; `alone` does both in one process. `eval.execution.sandbox` starts this file as a script, with only the standard library.

A value is sent as JSON: None, bool, str, float and small int unchanged, everything else as [type, ...]. A subclass is sent as
the plain type that it derives from, so no method of the program is transferred: received values compare by their content.
Iterators are sent with their items; anything else as an `Other`, which equals only itself.
"""

import builtins
import json
import os
import sys
from collections import deque
from contextlib import suppress
from itertools import islice

MAX_ITEMS = 100_000  # of an iterator
MAX_DEPTH = 200
SMALL = 1 << 53
SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque, "iterator": iter}
VIEWS = {"keys": type({}.keys()), "values": type({}.values()), "items": type({}.items())}


class Other:
    """A value of the program that is not a plain value; it has no content here."""


class ProgramError(BaseException):
    """The program raised something other than a builtin Exception: tests cannot expect it, so no `except Exception` catches it."""


# Values


def pack(value, depth: int = 0):
    """Return the JSON form of `value`. Raises ValueError if it is nested too deep or an iterator is too long."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if depth > MAX_DEPTH:
        raise ValueError(f"a value is nested more than {MAX_DEPTH} deep")
    if issubclass(kind, int):
        number = int.__index__(value)
        return number if -SMALL < number < SMALL else ["int", hex(number)]
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, (bytes, bytearray)):
        return ["bytes", bytes.hex(value) if issubclass(kind, bytes) else bytearray.hex(value)]
    if issubclass(kind, complex):
        return ["complex", complex.__complex__(value).real, complex.__complex__(value).imag]
    if issubclass(kind, dict):
        return ["dict", *([pack(key, depth + 1), pack(item, depth + 1)] for key, item in dict.items(value))]
    for name in ("list", "tuple", "set", "frozenset", "deque"):
        plain = SEQUENCES[name]
        if issubclass(kind, plain):
            return [name, *(pack(item, depth + 1) for item in plain.__iter__(value))]
    if kind is range:
        return ["range", *(pack(number) for number in (value.start, value.stop, value.step))]
    for name, view in VIEWS.items():
        if kind is view:
            return [name, *(pack(item, depth + 1) for item in value)]
    if hasattr(kind, "__next__"):
        items = [pack(item, depth + 1) for item in islice(value, MAX_ITEMS + 1)]
        if len(items) > MAX_ITEMS:
            raise ValueError(f"an iterator does not end within {MAX_ITEMS} items")
        return ["iterator", *items]
    return ["other"]


def unpack(data):
    """Return the value of a JSON form. Raises ValueError, TypeError, OverflowError or RecursionError for invalid data."""
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if not isinstance(data, list) or not data or not isinstance(data[0], str):
        raise ValueError("no value")
    name, *items = data
    if name in SEQUENCES:
        return SEQUENCES[name]([unpack(item) for item in items])
    if name == "dict":
        return {unpack(key): unpack(item) for key, item in items}
    if name == "int":
        return int(items[0], 16)
    if name == "bytes":
        return bytes.fromhex(items[0])
    if name == "complex":
        return complex(float(items[0]), float(items[1]))
    if name == "range":
        return range(*(unpack(item) for item in items))
    if name == "keys":
        return dict.fromkeys([unpack(item) for item in items]).keys()
    if name == "values":
        return dict(enumerate([unpack(item) for item in items])).values()
    if name == "items":
        return dict([unpack(item) for item in items]).items()
    if name == "other":
        return Other()
    raise ValueError("no value")


def restore(old, new) -> None:
    """Give an argument the content that the program left in it."""
    if type(old) is not type(new):
        return
    if isinstance(old, list):
        old[:] = new
    elif isinstance(old, (dict, set)):
        old.clear()
        old.update(new)
    elif isinstance(old, tuple):
        for before, after in zip(old, new, strict=False):
            restore(before, after)


# Lines over a pipe


def send(file, message: dict, limit: int | None = None) -> None:
    """Write one message; if it exceeds `limit` bytes, write an error instead."""
    try:
        line = json.dumps(message).encode() + b"\n"
    except MemoryError:
        line = b""
    if not line or (limit is not None and len(line) > limit):
        text = f"the result is larger than {limit} bytes"
        line = json.dumps({"error": "ValueError", "text": text}).encode() + b"\n"
    file.write(line)
    file.flush()


# The program's process


def load(source: str):
    """Execute a program as its own module. Its exceptions propagate."""
    program = type(sys)("program")
    sys.modules["program"] = program  # dataclasses and pickle look up their module
    settle_random(source)
    exec(compile(source, "<program>", "exec", dont_inherit=True), vars(program))
    return program


def settle_random(source: str) -> None:
    """Seed `random` if the source names it, so that the same completions give the same score."""
    if "random" in source:
        import random

        random.seed(0)


def describe(error: BaseException) -> dict:
    """Return an exception as its nearest builtin class and its text."""
    kind = next(kind for kind in type(error).__mro__ if vars(builtins).get(kind.__name__) is kind)
    return {"error": kind.__name__, "text": text_of(error)}


def text_of(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except Exception:
        return ""


def serve(job: dict, requests: int, replies: int) -> None:
    """Execute the program, then answer calls until the checker is gone."""
    with os.fdopen(requests, "rb") as requests, os.fdopen(replies, "wb") as replies:
        try:
            program, failure = load(job["source"]), {}
        except BaseException as error:
            program, failure = None, describe(error)
        send(replies, failure, job["output"])
        while program and (line := requests.readline()):
            call = json.loads(line)
            args, kwargs = unpack(call["args"]), unpack(call["kwargs"])
            try:
                answer = {"value": pack(getattr(program, call["name"])(*args, **kwargs))}
            except BaseException as error:
                answer = describe(error)
            with suppress(Exception):  # an argument that is not sendable any more stays as it was
                after = pack(args)
                if after != call["args"]:
                    answer["args"] = after
            send(replies, answer, job["output"])


# The checker's process


def check(job: dict, replies: int, requests: int, verdict: int) -> None:
    """Execute the tests; the verdict is "passed" only if their end was reached."""
    with os.fdopen(requests, "wb") as requests, os.fdopen(replies, "rb") as replies:

        def finish(status: str, detail: str = "") -> None:
            os.write(verdict, f"{job['token']} {status} {detail[:300]}".encode("utf-8", "replace"))
            os._exit(0)  # regardless of what the tests would catch

        def receive() -> dict:
            line = replies.readline(job["output"] + 1)
            if not line.endswith(b"\n"):
                finish("ended", "the program's process ended, or wrote more than it may")
            try:
                reply = json.loads(line)
                names = set(reply)
                value, args = unpack(reply.get("value")), unpack(reply.get("args"))
                failed = isinstance(reply.get("error"), str) and isinstance(reply.get("text"), str)
                if names - {"value", "args"} and not failed:
                    raise ValueError
            except Exception:
                finish("ended", "the program's process wrote something that is not a value")
            return {"value": value, "args": args, "error": reply.get("error"), "text": reply.get("text")}

        def function(name: str):
            def call(*args, **kwargs):
                try:
                    send(requests, {"name": name, "args": pack(args), "kwargs": pack(kwargs)})
                except OSError:
                    finish("ended", "the program's process ended")
                reply = receive()
                if reply["args"] is not None:
                    restore(args, reply["args"])
                if reply["error"]:
                    raise exception(reply["error"], reply["text"])
                return reply["value"]

            return call

        loaded = receive()
        if loaded["error"]:
            finish("error", f"{loaded['error']}: {loaded['text']}")
        settle_random(job["setup"] + job["tests"])
        space = {"__name__": "tests"}
        try:
            exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), space)
            space.update((name, function(name)) for name in job["names"])
            exec(compile(job["tests"], "<tests>", "exec", dont_inherit=True), space)
        except BaseException as error:
            finish("failed" if isinstance(error, AssertionError) else "error", explain(error, job["tests"]))
        finish("passed")


def exception(name: str, text: str) -> BaseException:
    """Return the builtin exception of that name, else a ProgramError, also if it would silently end a loop: `all(map(f, xs))`."""
    kind = vars(builtins).get(name)
    if isinstance(kind, type) and issubclass(kind, Exception) and name not in ("StopIteration", "StopAsyncIteration"):
        try:
            return kind(text)
        except TypeError:  # some need more than a text
            pass
    return ProgramError(f"{name}: {text}")


def explain(error: BaseException, tests: str) -> str:
    """Return the exception and the line of the tests that raised it."""
    number, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            number = trace.tb_lineno
        trace = trace.tb_next
    line = tests.splitlines()[number - 1].strip() if 0 < number <= len(tests.splitlines()) else ""
    text = text_of(error)
    return f"{type(error).__name__}{': ' if text else ''}{text} in {line}"


# Both in one process


def alone(job: dict, verdict: int) -> None:
    """Execute the program and, in its namespace, the tests. A program that tries can forge this verdict."""
    token, write, leave = job.pop("token"), os.write, os._exit
    tests = compile(job["setup"] + "\n" + job["tests"], "<tests>", "exec", dont_inherit=True)
    try:
        space = vars(load(job["source"]))
        settle_random(job["tests"])
        exec(tests, space)
    except AssertionError:
        write(verdict, f"{token} failed ".encode())
    except BaseException as error:
        write(verdict, f"{token} error {type(error).__name__}".encode())
    else:
        write(verdict, f"{token} passed ".encode())
    leave(0)


def limit(limits: dict) -> None:
    """Set resource limits, {"CPU": [soft, hard], ...}; limits that this system lacks or refuses are skipped."""
    import resource

    for name, wanted in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            most = resource.getrlimit(kind)[1]
            with suppress(ValueError, OSError):
                resource.setrlimit(kind, [n if most == resource.RLIM_INFINITY else min(n, most) for n in wanted])


def end_with(caller: int) -> None:
    """Let the kernel kill this process when the caller, the only holder of the other end of this pipe, is gone or already gone.

    bubblewrap's own --die-with-parent is set too late if the caller is killed while the namespaces are created.
    """
    import fcntl
    import select

    fcntl.fcntl(caller, fcntl.F_SETOWN, os.getpid())
    if hasattr(fcntl, "F_SETSIG"):  # elsewhere the signal is SIGIO, which also kills unless the program ignores it
        fcntl.fcntl(caller, fcntl.F_SETSIG, 9)
    fcntl.fcntl(caller, fcntl.F_SETFL, os.O_ASYNC)
    poll = select.poll()
    poll.register(caller, 0)
    if poll.poll(0):
        os._exit(1)


def main() -> None:
    role, caller, *pipes = sys.argv[1:]
    end_with(int(caller))
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(1, 0)  # the job has been read; from here on there is no input
    os.environ.clear()
    sys.argv[:] = [""]
    del sys.path[0]  # the folder of this file
    limit(job["limits"])
    {"serve": serve, "check": check, "alone": alone}[role](job, *map(int, pipes))
    os._exit(0)  # without atexit handlers and without waiting for threads


if __name__ == "__main__":
    main()
