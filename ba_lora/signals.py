"""SIGINT (Ctrl-C) and SIGTERM end a command with one line, together with every process that it started.

The first signal raises KeyboardInterrupt or Terminated in the main thread, so that every block is left in order. If that takes
longer than GRACE seconds (a long library call, a thread waiting for an endpoint), the process exits at once and kills every
process that it started. Files stay intact: results are appended line by line, or renamed when complete. Work that ends in its
own way (a training step, a matrix of runs) handles the signals itself inside `handled`.

A signal that was ignored when the command began stays ignored; nohup and scripts that start background jobs ignore SIGINT.
"""

import _thread
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

STOP = (signal.SIGINT, signal.SIGTERM)
ENDED = tuple(128 + number for number in STOP)  # the statuses of commands ended by these signals
# passed on to a command that this one started
PASSED = (
    *STOP,
    *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []),
)
GRACE = 1.2  # seconds that a command has to leave its blocks
AGAIN = 1.0  # seconds after which a further Ctrl-C counts as a second one: a terminal and torchrun both send the first
LATER = 0.02  # seconds after which a signal is sent again that came where no exception can be raised
PASSED_ON = 0  # not a signal number; tells the watching thread that another handler forwarded a signal
FINALIZERS = os.path.join("multiprocessing", "util.py")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Terminated(SystemExit):
    """SIGTERM ended the command, as KeyboardInterrupt does for SIGINT. Not an Exception, so that no error handler continues."""

    def __init__(self):
        super().__init__(128 + signal.SIGTERM)


def describe(number: int) -> str:
    """The line that a command prints when a signal ends it."""
    return "error: interrupted" if number == signal.SIGINT else f"error: ended by {signal.Signals(number).name}"


@contextmanager
def handled(handler: Callable, numbers: Iterable[int] = STOP) -> Iterator[dict]:
    """Inside the block `handler` (number, frame) takes these signals, except ignored ones → {number: previous handler}.

    Outside the main thread, where Python cannot set handlers, the block runs without it.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield before
    finally:
        for number, handler_before in before.items():
            signal.signal(number, signal.SIG_DFL if handler_before is None else handler_before)


class Ending:
    """The reaction of a command to the first signal. Use it in a `with` block, in the main thread."""

    def __init__(self):
        self.received: int | None = None  # the first signal, whichever handler took it
        self.raised = self.told = False

    def __enter__(self) -> "Ending":
        global _command
        self.outer, _command = _command, self
        self.stack = contextlib.ExitStack()
        if threading.current_thread() is threading.main_thread():
            reader, self.writer = socket.socketpair()
            self.writer.setblocking(False)
            self.stack.enter_context(handled(self))
            # written at once by C code, even while the main thread is inside a library
            before = signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
            self.stack.callback(self.writer.close)
            self.stack.callback(signal.set_wakeup_fd, before)
            _thread.start_new_thread(self._watch, (reader,))
        return self

    def __exit__(self, *exception) -> None:
        global _command
        self.stack.close()
        _command = self.outer

    def __call__(self, number: int, frame) -> None:
        """The handler of both signals."""
        self.received = self.received or number
        if _in_finalizer(frame):
            # threading's own locks may be held by the interrupted code
            _thread.start_new_thread(_send_again, (number,))
        elif not self.raised:
            self.raised = True
            with contextlib.suppress(OSError):
                self.writer.send(bytes([PASSED_ON]))
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def _watch(self, reader: socket.socket) -> None:
        """In its own thread: end the process GRACE seconds after a signal that ends it, or at once after a second one."""
        number, interrupted, deadline = None, None, float("inf")
        with reader:
            while (left := deadline - time.monotonic()) > 0:
                if not select.select([reader], [], [], None if left == float("inf") else left)[0]:
                    break
                if not (said := reader.recv(1)):
                    return  # the command has ended
                now, signalled = time.monotonic(), said[0]
                if signalled == PASSED_ON or (signalled in STOP and signal.getsignal(signalled) is self):
                    deadline = min(deadline, now + GRACE)
                if signalled == signal.SIGINT and signal.getsignal(signalled) is not signal.default_int_handler:
                    if interrupted is not None and now - interrupted > AGAIN:
                        deadline = min(deadline, now + (0 if deadline < float("inf") else GRACE))
                    interrupted = interrupted or now
                number = number or (signalled if signalled in STOP else None)
        self.end(number)

    def end(self, number: int | None = None) -> None:
        """Print the line, kill all child processes and exit with the signal's status, without waiting for other threads."""
        number = self.received or number or signal.SIGTERM
        if not self.told and os.environ.get("RANK", "0") == "0":
            self.told = True
            os.write(2, f"{describe(number)}\n".encode())  # bypass Python's buffers, which may be locked
        kill_children()
        if threading.current_thread() is threading.main_thread():
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
        os._exit(128 + number)


def _in_finalizer(frame) -> bool:
    """Return True inside `__del__` or a callback of multiprocessing: Python prints an exception raised there and continues."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or (code.co_name == "__call__" and code.co_filename.endswith(FINALIZERS)):
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    time.sleep(LATER)
    os.kill(os.getpid(), number)


_command: Ending | None = None


def note(number: int) -> None:
    """Remember a signal that running work handles itself; `check` acts on it afterwards."""
    if _command is not None:
        _command.received = _command.received or number


def check() -> None:
    """Between two pieces of work, raise KeyboardInterrupt or Terminated if a signal came that did not stop the first one."""
    if _command is not None and _command.received is not None:
        raise KeyboardInterrupt if _command.received == signal.SIGINT else Terminated


def _after_fork() -> None:
    """Reset a forked child: it has no watching thread, and it handles its own signals."""
    global _command
    if _command is not None:
        _command = None
        signal.set_wakeup_fd(-1)
        for number in STOP:
            if isinstance(signal.getsignal(number), Ending):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def while_importing() -> None:
    """For the packages' `__init__`: let a `python -m` command end with one line even while it still imports its modules."""
    if sys.argv[:1] != ["-m"] or threading.current_thread() is not threading.main_thread():
        return  # imported as a library

    def end(number: int, frame) -> None:
        os.write(2, f"{describe(number)}\n".encode())
        os._exit(128 + number)

    for number in STOP:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end)


# Child processes


def tree(process: int) -> list:
    """The psutil.Process of `process` and of all its running descendants."""
    import psutil

    try:
        return [top := psutil.Process(process), *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: Iterable) -> None:
    """Kill these (as `tree` gives them) and wait until they are gone."""
    import psutil

    processes = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=1)


def kill_children() -> None:
    """Kill everything that this process started, except multiprocessing's tracker, which cleans up and ends on its own."""
    import psutil

    def is_tracker(process) -> bool:
        with contextlib.suppress(psutil.Error):
            return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
        return False

    kill(process for process in tree(os.getpid())[1:] if not is_tracker(process))


def run(words: list[str], whom: Callable[[int], list] = lambda pid: tree(pid)[:1], **options) -> tuple[int, int | None]:
    """Run a command to its end → (its status, the first signal that this process got meanwhile).

    The command has its own session, so that a terminal's Ctrl-C reaches it only once, through this process. Signals are forwarded
    to the processes that `whom` returns; its end is awaited. A second Ctrl-C, or the death of this process, kills it.
    options: for subprocess.Popen.
    """
    import psutil

    process, received, since, seen = None, None, 0.0, {}

    def forward(number: int, frame) -> None:
        nonlocal received, since
        if received is None:
            received, since = number, time.monotonic()
            note(number)
        elif number == signal.SIGINT and time.monotonic() - since > AGAIN:
            threading.Timer(2 * GRACE, lambda: kill(seen.values())).start()
        if process is not None:
            pass_on(number)

    def pass_on(number: int) -> None:
        seen.update((each.pid, each) for each in tree(process.pid))
        for each in whom(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    with handled(forward, PASSED):
        process = subprocess.Popen(words, start_new_session=True, preexec_fn=_end_with(os.getpid()), **options)
        if received is not None:  # a signal came meanwhile
            pass_on(received)
        try:
            status = process.wait()
        except BaseException:
            kill(tree(process.pid))
            raise
    if received is not None:
        kill(each for each in seen.values() if each.is_running())
    return status, received


def _end_with(parent: int) -> Callable[[], None] | None:
    """A preexec_fn that makes the child get SIGTERM when `parent` dies; None if the system does not support this."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has already died
            os._exit(128 + signal.SIGTERM)

    return ask
