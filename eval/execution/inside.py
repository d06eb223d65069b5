"""Runs inside the sandbox: the program's process, the checker's process, and the plain values that pass between them.

`serve` executes the program and answers calls; `check` executes the tests, whose calls to the program's functions go over a
pipe; `alone` does both in one process. `eval.execution.sandbox` starts this file as a script, with only the standard library.

Messages are lines of JSON: {"call", "args", "kwargs"} is answered by {"value"} or {"error", "text", "given"}, with {"args"} if the
call changed them. A call of a function that came as an argument goes the other way before the answer.
"""

import builtins
import json
import os
import sys
from contextlib import suppress

try:
    from .values import Functions, pack, restore, unpack
except ImportError:  # in the sandbox both files lie in one folder, without their package
    from values import Functions, pack, restore, unpack

ONLY_TREE = 0x400  # of `compile`: ast.PyCF_ONLY_AST, without the time that importing ast takes


class ProgramError(BaseException):
    """The program raised something other than a builtin Exception: tests cannot expect it, so no `except Exception` catches it."""


# Lines over a pipe


def send(file, message: dict, limit: int | None = None) -> None:
    """Write one message; if it exceeds `limit` bytes, write an error instead."""
    try:
        line = json.dumps(message).encode() + b"\n"
    except MemoryError:
        line = b""
    if not line or (limit is not None and len(line) > limit):
        text = f"the result is larger than {limit} bytes"
        line = json.dumps({"error": "ValueError", "text": text, "given": None}).encode() + b"\n"
    file.write(line)
    file.flush()


class Peer:
    """The other process at the end of two pipes: calls its functions, and answers its calls meanwhile.

    of_tests: whether this is the checker's process. named: returns a function of this process that is called by name. fail: called with
    a reason if the other process has ended or written something else than a message; does not return. limit: bytes per line.
    """

    def __init__(self, reader, writer, of_tests: bool, named, fail, limit: int):
        self.reader, self.writer, self.named, self.fail, self.limit = reader, writer, named, fail, limit
        self.of_tests, self.functions = of_tests, Functions(of_tests, self.call)

    def send(self, message: dict) -> None:
        try:
            send(self.writer, message, None if self.of_tests else self.limit)
        except OSError:
            self.fail("the program's process ended")

    def receive(self) -> dict:
        """Return the next message, with its values unpacked."""
        line = self.reader.readline(self.limit + 1 if self.of_tests else -1)
        if not line.endswith(b"\n"):
            self.fail("the program's process ended, or wrote more than it may")
        try:
            message = json.loads(line)
            if message.keys() - {"value", "args"} not in (set(), {"error", "text", "given"}, {"call", "kwargs"}):
                raise ValueError
            if "error" in message and not (isinstance(message["error"], str) and isinstance(message["text"], str)):
                raise ValueError
            values = ("value", "args", "kwargs", "given")
            return message | {name: unpack(message[name], self.functions) for name in values if name in message}
        except Exception:  # `unpack` constructs what the program chose, which may raise anything
            self.fail("the program's process wrote something that is not a value")

    def call(self, what: str | int, args: tuple, kwargs: dict):
        """Call a function of the other process, which it has under this name or has sent under this number."""
        packed = {"args": pack(args, self.functions), "kwargs": pack(kwargs, self.functions)}
        self.send({"call": what} | packed)
        while "call" in (reply := self.receive()):
            self.answer(reply)
        if "args" in reply:
            restore(args, reply["args"])
        if "error" in reply:
            raise exception(reply["error"], reply["text"], reply["given"])
        return reply.get("value")

    def answer(self, message: dict) -> None:
        """Make the call that the other process asks for, and send what came of it."""
        what, args, before = message["call"], message["args"], None
        try:
            before = pack(args, self.functions)
            function = self.named(what) if isinstance(what, str) else self.functions.sent[what]
            answer = {"value": pack(function(*args, **message["kwargs"]), self.functions)}
        except BaseException as error:
            answer = describe(error)
        with suppress(Exception):  # an argument that is not sendable any more stays as it was
            after = pack(args, self.functions)
            if after != before:
                answer["args"] = after
        self.send(answer)


def describe(error: BaseException) -> dict:
    """Return an exception as its nearest builtin class, its text, and the arguments that make it."""
    kind = next(kind for kind in type(error).__mro__ if vars(builtins).get(kind.__name__) is kind)
    given = error.args
    if isinstance(error, OSError) and error.filename is not None:
        given = (error.errno, error.strerror, error.filename)
    try:
        given = pack(given)
    except Exception:  # packing calls methods of the program's classes, which may raise anything
        given = None
    return {"error": kind.__name__, "text": text_of(error, 10_000), "given": given}


def exception(name: str, text: str, given) -> BaseException:
    """Return the builtin exception of that name, or of the nearest class above it that takes a text alone.

    A ProgramError for any other name, also for one that would silently end a loop: `all(map(f, xs))`.
    """
    kind = vars(builtins).get(name)
    if not isinstance(kind, type) or not issubclass(kind, Exception) or name in ("StopIteration", "StopAsyncIteration"):
        return ProgramError(f"{name}: {text}")
    with suppress(Exception):  # the program chose the arguments
        if str(made := kind(*given)) == text:
            return made
    for base in kind.__mro__:
        if issubclass(base, Exception):
            with suppress(Exception):
                return base(text)
    return ProgramError(f"{name}: {text}")


def text_of(error: BaseException, length: int) -> str:
    try:
        return str(error)[:length]
    except Exception:  # an exception of the program may have any __str__
        return ""


# The program's process


def load(source: str, names=()):
    """Execute a program as its own module → the module, one statement after the other.

    A statement that raises is skipped, and the names that it binds are undefined afterwards: a sample call, a check, a line of
    prose that reads as Python. A statement that exits ends the module. Raises the first exception if one of `names` is not
    defined then, and SyntaxError or ValueError if the source is not Python.
    """
    program = type(sys)("program")
    sys.modules["program"] = program  # dataclasses and pickle look up their module
    settle_random(source)
    flags, failure = 0, None
    for text, node in statements(source):
        flags |= _future(node)
        try:
            exec(compile(text, "<program>", "exec", flags, dont_inherit=True), vars(program))
        except (Exception, SystemExit) as error:
            failure = failure or error
            if isinstance(error, SystemExit):
                break
            for name in bound(node):
                vars(program).pop(name, None)
    if failure and any(name not in vars(program) for name in names):
        raise failure
    return program


def statements(source: str) -> list:
    """Return (text, tree) of every statement at the margin; the whole text as one if it is too deep for a tree."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    try:
        tree = compile(source, "<program>", "exec", ONLY_TREE, dont_inherit=True)
    except (RecursionError, MemoryError):
        return [(source, None)]
    data, line_starts, start, found = source.encode(), [0], 0, []
    for line in data.split(b"\n"):
        line_starts.append(line_starts[-1] + len(line) + 1)
    for node in tree.body:
        end = line_starts[node.end_lineno - 1] + node.end_col_offset  # the parser counts columns in bytes
        found.append((data[start:end].lstrip(b" \t\f;").decode(), node))
        start = end
    return found


def _future(node) -> int:
    """Return the compiler's flags of a `from __future__ import`, which holds for all statements after it, wherever it stands."""
    if type(node).__name__ != "ImportFrom" or node.module != "__future__":
        return 0
    import __future__

    features = (getattr(__future__, alias.name, None) for alias in node.names)
    return sum(getattr(feature, "compiler_flag", 0) for feature in features)


def bound(node) -> set[str]:
    """Return the names that a statement defines outside functions and classes, other than by an import: one that fails leaves
    what was there."""
    names, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        kind = type(node).__name__
        if kind in ("FunctionDef", "AsyncFunctionDef", "ClassDef"):
            names.add(node.name)
        elif kind == "Name" and type(node.ctx).__name__ == "Store":
            names.add(node.id)
        elif kind not in ("Lambda", "comprehension") and not (kind == "AnnAssign" and node.value is None):
            for field in getattr(node, "_fields", ()):
                value = getattr(node, field, None)
                waiting += value if isinstance(value, list) else [value]
    return names


def settle_random(source: str) -> None:
    """Seed `random` if the source names it, so that the same completions give the same score."""
    if "random" in source:
        import random

        random.seed(0)


def settle_threads(source: str) -> None:
    """Run each thread of a program to its end when it is started, since the sandbox allows only one.

    That is right for threads that do not wait for one another.
    """
    if not any(word in source.lower() for word in ("thread", "executor")):
        return
    import threading
    from concurrent import futures

    class Executor(futures.Executor):
        def __init__(self, max_workers=None, thread_name_prefix="", initializer=None, initargs=()):
            if initializer:
                initializer(*initargs)

        def submit(self, function, /, *args, **kwargs):
            future = futures.Future()
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # whatever the program raises belongs to whoever asks for the result
                future.set_exception(error)
            return future

    futures.ThreadPoolExecutor = Executor
    threading.Thread.start, threading.Thread.join = _run_now, lambda thread, timeout=None: None
    threading.Thread.is_alive = lambda thread: False


def _run_now(thread) -> None:
    with suppress(Exception, SystemExit):  # a thread prints it, and its starter never sees it
        thread.run()


def serve(job: dict, requests: int, replies: int) -> None:
    """Execute the program, then answer calls until the checker is gone."""
    with os.fdopen(requests, "rb") as requests, os.fdopen(replies, "wb") as replies:
        settle_threads(job["source"])
        try:
            program, failure = load(job["source"], job["names"]), {}
        except BaseException as error:
            program, failure = None, describe(error)
        peer = Peer(
            requests, replies, False, lambda name: getattr(program, name), lambda reason: os._exit(0), job["output"]
        )
        peer.send(failure)
        while program:
            peer.answer(peer.receive())


# The checker's process


def check(job: dict, replies: int, requests: int, verdict: int) -> None:
    """Execute the tests; the verdict is "passed" only if their end was reached."""
    with os.fdopen(requests, "wb") as requests, os.fdopen(replies, "rb") as replies:

        def finish(status: str, detail: str = "") -> None:
            os.write(verdict, f"{job['token']} {status} {detail[:300]}".encode("utf-8", "replace"))
            os._exit(0)  # regardless of what the tests would catch

        peer = Peer(replies, requests, True, None, lambda reason: finish("ended", reason), job["output"])
        loaded = peer.receive()
        if "error" in loaded:
            finish("error", f"{loaded['error']}: {loaded['text']}")
        settle_random(job["setup"] + job["tests"])
        space = {"__name__": "tests"}
        try:
            exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), space)
            space.update(
                (name, lambda *args, _name=name, **kwargs: peer.call(_name, args, kwargs)) for name in job["names"]
            )
            exec(compile(job["tests"], "<tests>", "exec", dont_inherit=True), space)
        except BaseException as error:
            finish("failed" if isinstance(error, AssertionError) else "error", explain(error, job["tests"]))
        finish("passed")


def explain(error: BaseException, tests: str) -> str:
    """Return the exception and the line of the tests that raised it."""
    number, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            number = trace.tb_lineno
        trace = trace.tb_next
    line = tests.splitlines()[number - 1].strip() if 0 < number <= len(tests.splitlines()) else ""
    text = text_of(error, 200)
    return f"{type(error).__name__}{': ' if text else ''}{text} in {line}"


# Both in one process


def alone(job: dict, verdict: int) -> None:
    """Execute the program and, in its namespace, the tests. A program that tries can forge this verdict."""
    token, write, leave = job.pop("token"), os.write, os._exit
    tests = compile(job["setup"] + "\n" + job["tests"], "<tests>", "exec", dont_inherit=True)
    settle_threads(job["source"])
    try:
        space = vars(load(job["source"], job["names"]))
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
    sys.modules.pop("values", None)  # a program may have a module of that name
    limit(job["limits"])
    {"serve": serve, "check": check, "alone": alone}[role](job, *map(int, pipes))
    os._exit(0)  # without atexit handlers and without waiting for threads


if __name__ == "__main__":
    main()
