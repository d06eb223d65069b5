"""Copies of the evaluated model in processes of their own, one per GPU, which share the prompts.

Each process (`ba_lora.inference.copy_process`) opens the model and takes its share: the prompts sorted by length and dealt out in
turn, so that the shares take about as long. A message is a JSON line. Completions come back as they end, to be written in one place.
The processes end with this one, whatever ends it: their input ends.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

from ..errors import RunFailure, UserError
from ..files import IMPORTS
from ..machine.devices import visible
from .completions import Completion, room

MODULE = "ba_lora.inference.copy_process"


class Copies:
    """The open copies of one model, in place of the model itself. options: those of `open_subject`, as JSON values.

    Raises UserError if a process cannot open the model.
    """

    def __init__(self, count: int, options: dict):
        self._processes = [_start(number, count) for number in range(count)]
        self.close = weakref.finalize(self, _end, self._processes)
        for process in self._processes:
            _send(process, options)
        positions = [self._receive(process)["positions"] for process in self._processes]
        self.config = SimpleNamespace(max_position_embeddings=positions[0])

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int,
        end: int,
        sampling,
        seeds: Sequence[int],
    ) -> Iterator[tuple[int, Completion]]:
        """(number of a prompt, its completion), as they end; the options are those of `local.stream`."""
        for prompt in prompts:  # refuse what does not fit before anything is asked
            room(prompt, max_new_tokens, self.config.max_position_embeddings)
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]), reverse=True)
        options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "end": end, "sampling": sampling}
        shares = [order[start :: len(self._processes)] for start in range(len(self._processes))]
        return self._gather(
            [
                (process, share, options | {"prompts": [prompts[n] for n in share], "seeds": [seeds[n] for n in share]})
                for process, share in zip(self._processes, shares, strict=True)
                if share
            ]
        )

    def _gather(self, work: list[tuple[subprocess.Popen, list[int], dict]]) -> Iterator[tuple[int, Completion]]:
        found, complete = queue.SimpleQueue(), False
        try:
            for process, share, question in work:
                _send(process, question)
                threading.Thread(target=self._listen, args=(process, share, found), daemon=True).start()
            busy = len(work)
            while busy:
                answer = found.get()
                if isinstance(answer, BaseException):
                    raise answer
                if answer is None:
                    busy -= 1
                else:
                    yield answer
            complete = True
        finally:
            if not complete:  # they still work on what nobody waits for
                self.close()

    def _listen(self, process: subprocess.Popen, share: list[int], found: queue.SimpleQueue) -> None:
        """In a thread: pass on the completions of one process; None at the end, or the exception that ended it."""
        try:
            while "done" not in (message := self._receive(process)):
                found.put((share[message["number"]], Completion(*message["completion"])))
            found.put(None)
        except Exception as error:
            found.put(error)

    def _receive(self, process: subprocess.Popen) -> dict:
        try:
            line = process.stdout.readline()
        except ValueError:  # closed meanwhile
            line = ""
        if not line.endswith("\n"):
            status, number = process.wait(), self._processes.index(process) + 1
            raise RunFailure(
                f"process {number} of {len(self._processes)} that generate ended with status {status}; what is written stays, and "
                "the same command continues"
            )
        message = json.loads(line)
        if "error" in message:
            raise (UserError if message["status"] == UserError.status else RunFailure)(message["error"])
        return message


def _start(number: int, count: int) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(IMPORTS), *_path()])}
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    if (device := visible(number)) is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    return subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if number == 0 else subprocess.DEVNULL,  # warnings and bars are those of the first
        env=environment,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # a terminal's Ctrl-C goes to this process, which ends the others
    )


def _path() -> list[str]:
    return list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))


def _send(process: subprocess.Popen, message: dict) -> None:
    with contextlib.suppress(OSError):  # it has ended; reading its answer says so
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
        process.stdout.close()
        with contextlib.suppress(OSError):  # a question that it did not read
            process.stdin.close()
