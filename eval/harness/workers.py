"""Questions answered by worker processes, for text that may take too long, too much memory or crash the interpreter.

`ask` starts processes that run `answer` of a module, with one JSON line in and one JSON line out per question. A process that
does not answer within its seconds is killed, and a dead one is replaced: that question has no answer; the others are unaffected.

In the worker, `serve` limits memory and sets an alarm without a handler, which ends a process that still computes after its
parent is gone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ba_lora.errors import RunFailure

MEMORY = 2 << 30  # bytes of address space
SHARE = 50  # questions that justify a process of their own


def ask(module: str, questions: Sequence, seconds: float, workers: int | None = None) -> list:
    """Return the answers of `python -m module SECONDS` to JSON values, in order; None for a question without an answer.

    workers: number of processes (default: the cores, but each with at least SHARE questions). Works in any thread. Raises
    RunFailure if the module does not start.
    """
    count = workers or max(1, min(os.cpu_count() or 1, len(questions) // SHARE))
    answers: list = [None] * len(questions)
    stop, started = threading.Event(), []
    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(_ask, module, questions[start::count], seconds, stop, started) for start in range(count)]
        try:
            for start, share in enumerate(running):
                answers[start::count] = share.result()
        finally:  # Ctrl-C: no process continues or waits for its answer
            stop.set()
            for worker in started:
                worker.kill()
    return answers


def _ask(module: str, questions: Sequence, seconds: float, stop: threading.Event, started: list) -> list:
    """Return the answers of one process at a time, replaced after being killed or dying. All processes are listed in `started`."""
    worker, answers = None, []
    try:
        for question in questions:
            if worker is None and not stop.is_set():
                worker = _start(module, seconds)
                started.append(worker)
            if stop.is_set():
                break
            start = time.monotonic()
            limit = threading.Timer(seconds, worker.kill)
            limit.start()
            try:
                worker.stdin.write(json.dumps(question) + "\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
            except OSError:
                line = ""
            limit.cancel()
            limit.join()
            answers.append(json.loads(line) if line.endswith("\n") else None)
            if not line.endswith("\n") or time.monotonic() - start >= seconds:  # killed, or about to be
                _stop(worker)
                worker = None
    finally:
        if worker:
            _stop(worker)
    return answers


def _start(module: str, seconds: float) -> subprocess.Popen:
    """Start a process and wait until it is ready: its imports may take seconds, which count towards no time limit."""
    worker = subprocess.Popen(
        [sys.executable, "-m", module, str(int(seconds) + 5)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        text=True,
        encoding="utf-8",
    )
    if worker.stdout.readline() != "ready\n":
        _stop(worker)
        raise RunFailure(f"the process of {module} does not start; to see why, run: {sys.executable} -m {module} 10")
    return worker


def _stop(worker: subprocess.Popen) -> None:
    worker.kill()
    worker.wait()
    worker.stdout.close()
    with contextlib.suppress(OSError):  # a question that the process did not read
        worker.stdin.close()


# In the worker


def serve(prepare: Callable[[], Callable]) -> None:
    """Answer the lines of standard input with the function returned by `prepare`, until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # output of libraries is not an answer
    _limit_memory()
    answer = prepare()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        _set_alarm(int(sys.argv[1]))
        reply = answer(question)
        _set_alarm(0)
        print(json.dumps(reply), file=answers, flush=True)


def _set_alarm(seconds: int) -> None:
    """Set an alarm without a handler, which ends the process whatever it computes."""
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(seconds)


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # Windows; a system without this limit
        pass
