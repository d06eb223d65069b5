"""Runs of an experiment on local worker processes: each worker does many runs, because loading the libraries takes seconds.

A worker calls the same functions as `python train.py` and `python -m eval.gsm8k`. Its output goes to RUN.log.

SIGINT and SIGTERM to the parent, or to its process group, stop the matrix: the parent forwards SIGTERM to every worker, which
starts no further run, and kills those that do not end in time. A stopped run has not failed; the next start does it.
"""

import contextlib
import io
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback

from tqdm import tqdm

from .. import signals
from ..errors import RunFailure, Stopped, UserError
from ..files import atomic_write, read_json
from ..folders.ownership import claimed
from ..laboratory.names import parse
from .given_texts import are_given, shown
from .matrix import Evaluation, Experiment, Run

TRAIN_SHARE = 0.75  # of a run's time, for the progress bar
# Seconds that workers have after a signal. A command may need a long step to write its checkpoint; a worker that trains in its
# own process would start its run again anyway.
GRACE, COMMAND_GRACE = 30, 300
INTERRUPTED = (Stopped.STATUS, *signals.ENDED, *(-number for number in signals.STOP))


# Every queue, to the end of the process. The thread that fills a queue would otherwise drop the last reference to its semaphore and
# remove that; as the process may end in the middle of it, Python would warn of a leaked semaphore.
_queues: list = []


def run_all(experiment: Experiment, jobs: int, overwrite: bool = False, retry: bool = False) -> list[Run]:
    """Do every run that is not done; return the runs that failed, now or before.

    Finished runs are kept unless `overwrite`; failed runs are skipped unless `retry` (or `overwrite`). Raises Stopped after
    SIGINT or SIGTERM, when all workers have ended.
    """
    states = [(run, run.state(experiment.evaluations)) for run in experiment.runs]
    kept = [run for run, state in states if state == "measured" and not overwrite]
    left = [run for run, state in states if state == "failed" and not (overwrite or retry)]
    todo = [run for run in experiment.runs if run not in kept and run not in left]
    if kept:
        print(f"{len(kept)} finished runs are kept (--overwrite repeats them)", flush=True)
    for run in left:
        print(f"{run.name} failed before (--retry tries again): {run.failure.read_text(encoding='utf-8').strip()}")
    if not todo:
        return left
    jobs = max(1, min(jobs, len(todo)))
    stop = _Stop(GRACE if experiment.evaluations else COMMAND_GRACE)
    with signals.handled(stop):
        context = multiprocessing.get_context("spawn")
        tasks, events = context.Queue(), context.Queue()
        _queues.extend((tasks, events))
        for index, run in enumerate(todo):
            tasks.put((index, run, overwrite))
        workers = [
            context.Process(target=_work, args=(tasks, events, experiment.evaluations), daemon=True)
            for _ in range(jobs)
        ]
        try:
            with _threads(max(1, (os.cpu_count() or 1) // jobs)), _held_back():
                for worker in workers:
                    tasks.put(None)
                    worker.start()
            done, failed = _watch(todo, workers, events, stop)
            for worker in workers:
                # let it end by itself: a killed process leaves its locks behind, and Python warns about them
                worker.join(max(0, min(10, stop.deadline - time.monotonic())))
        finally:
            signals.kill(process for worker in workers if worker.is_alive() for process in signals.tree(worker.pid))
            tasks.cancel_join_thread()
    if stop.received is not None:
        name = signal.Signals(stop.received).name
        raise Stopped(
            f"{name} after {len(done)} of {len(todo)} runs; the same command"
            f"{' without --overwrite' if overwrite else ''} continues where it stopped",
            Stopped.STATUS if stop.received == signal.SIGTERM else 128 + stop.received,
        )
    return left + [todo[index] for index in failed]


class _Stop:
    """The parent's handler: the first signal starts a grace period of `grace` seconds, a second Ctrl-C ends it."""

    def __init__(self, grace: float):
        self.grace, self.received, self.since, self.deadline = grace, None, 0.0, float("inf")

    def __call__(self, number: int, frame) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self.since, self.deadline = number, now, now + self.grace
        elif number == signal.SIGINT and now - self.since > signals.AGAIN:
            self.deadline = now


@contextlib.contextmanager
def _held_back():
    """Block Ctrl-C until the end of the block, and in processes started in it until they are ready (`_work`)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _threads(share: int):
    """Give processes started in the block `share` threads, or OMP_NUM_THREADS if that is fewer."""
    asked = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(min(share, int(asked)) if (asked or "").isdigit() else share)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        os.environ |= {"OMP_NUM_THREADS": asked} if asked is not None else {}


def _watch(todo: list[Run], workers: list, events, stop: _Stop) -> tuple[set[int], list[int]]:
    """Show the workers' progress until every run is done, or until `stop` was requested and they have ended or run out of time.

    Returns the indices of the finished runs and of the failed runs.
    """
    fractions, done, failed, told = [0.0] * len(todo), set(), [], False
    shown = sys.stderr.isatty()
    with tqdm(
        total=len(todo),
        desc=f"{len(todo)} runs",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
        mininterval=0.5 if shown else 20,
    ) as bar:
        while len(done) + len(failed) < len(todo) and time.monotonic() < stop.deadline:
            if stop.received is not None and not told:
                told = True
                tqdm.write(
                    f"stopping; running runs have {stop.grace} s to end, another Ctrl-C kills them", file=sys.stdout
                )
                for worker in workers:
                    worker.terminate()
            # before the queue is read, so that it contains the last worker's events
            alive = any(worker.is_alive() for worker in workers)
            try:
                index, kind, value = events.get(timeout=0.2)
            except queue.Empty:
                if not alive and stop.received is None:
                    lost = [index for index in range(len(todo)) if index not in (*done, *failed)]
                    tqdm.write(f"the workers ended early; not done: {', '.join(todo[index].name for index in lost)}")
                    return done, failed + lost
                if not alive:
                    break
                bar.refresh() if shown else None
                continue
            if kind == "progress":
                fractions[index] = value
                bar.set_postfix_str(todo[index].name, refresh=False)
            elif kind == "note":
                tqdm.write(f"{todo[index].name:24} {value}", file=sys.stdout)
                sys.stdout.flush()
            else:
                if kind == "done":
                    done.add(index)
                elif kind == "failed" or stop.received is None:  # a run that was stopped by itself is not done either
                    failed.append(index)
                fractions[index] = 1.0 if index in (*done, *failed) else fractions[index]
                tqdm.write(f"{todo[index].name:24} {value}", file=sys.stdout)
                sys.stdout.flush()
            bar.n = sum(fractions)
            bar.update(0)
    return done, failed


def _work(tasks, events, evaluations: list[Evaluation]) -> None:
    """Run a worker: take a run, do it, report; until no run is left or SIGTERM comes. The parent forwards Ctrl-C as SIGTERM."""
    # tqdm's own lock is a system semaphore; if this process is killed, Python's resource tracker warns that it leaked
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    with signals.Ending() as ending:
        while ending.received is None and (task := tasks.get()) is not None:
            index, run, overwrite = task
            try:
                run.failure.unlink(missing_ok=True)
                if (twin := parse(run.model)) and not twin.folder.is_dir():
                    events.put((index, "note", "its model is pre-trained first, about seven minutes on one core"))
                if evaluations:
                    retrain = overwrite or not run.is_trained()
                    line = do_run(run, evaluations, retrain, lambda f, i=index: events.put((i, "progress", f)))
                else:
                    line = do_command(run, overwrite)
                events.put((index, "done", line))
            except (Stopped, signals.Terminated) as stopped:
                events.put((index, "stopped", f"stopped {getattr(stopped, 'message', 'before its end')}"))
            except Exception as error:
                if ending.raised:  # raised by a library because of the signal
                    break
                run.log.parent.mkdir(parents=True, exist_ok=True)
                with open(run.log, "a", encoding="utf-8") as log:
                    traceback.print_exc(file=log)
                line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                with atomic_write(run.failure) as file:
                    file.write(line + "\n")
                events.put((index, "failed", f"failed: {line} (see {run.log})"))
        # exit once queues and locks are closed, without the seconds that libraries take to shut down
        if ending.received is not None:
            multiprocessing.util.Finalize(None, os._exit, args=(128 + ending.received,), exitpriority=-100)


def _end_with_parent() -> None:
    """End when the parent is killed. Otherwise its workers would continue to train beside those of its next start."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    signals.kill_children()
    os._exit(1)


def do_run(run: Run, evaluations: list[Evaluation], retrain: bool, report=lambda fraction: None) -> str:
    """Train one run, unless that is done, and measure it; return a one-line summary."""
    from ..training.run import train
    from .measures.classifier import measure_classifier
    from .measures.generator import measure
    from .measures.texts import measure_texts

    share = TRAIN_SHARE if run.arguments else 0.0
    report(0.0)
    log = io.StringIO()
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        extra = {}
        if run.arguments and retrain:
            arguments = run.arguments.changed(overwrite=True, progress=False)
            train(arguments, callbacks=[_progress_callback(lambda f: report(share * f))])
            signals.check()
        started = time.perf_counter()
        with claimed(run.folder, "run", "--runs"):
            if run.arguments:
                record = read_json(run.folder / "run.json")
                extra = {key: record[key] for key in ("train_seconds", "trained_parameters", "peak_memory")}
            measured = measure_classifier if run.arguments and run.arguments.task else measure
            measured = measure_texts if are_given(evaluations) else measured
            measures = measured(run, evaluations, extra, lambda f: report(share + (1 - share) * f))
    run.log.write_text(log.getvalue(), encoding="utf-8")
    data = {evaluation.name: evaluation.data for evaluation in evaluations}
    scores = ", ".join(f"{name} {shown(data[name], score)}" for name, score in measures["scores"].items())
    trained = f"trained {extra['train_seconds']:.0f} s, " if "train_seconds" in extra else ""
    return f"{scores} ({trained}measured {time.perf_counter() - started:.0f} s)"


def command_of(run: Run, overwrite: bool = False) -> list[str]:
    """Return the command that trains and evaluates one run. It resumes a training of the same options and files, unless `overwrite`."""
    again = "--overwrite" if overwrite or run.status() is None else "--resume"
    return [sys.executable, "-m", "ba_lora.experiments", "one", *run.words, again]


def do_command(run: Run, overwrite: bool = False) -> str:
    """Train and evaluate one run by its command, on as many processes as the environment sets; return a one-line summary."""
    words = command_of(run, overwrite)
    run.log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with open(run.log, "w", encoding="utf-8") as log:
        status, _ = signals.run(words, stdout=log, stderr=subprocess.STDOUT)
    if status in INTERRUPTED:
        raise Stopped("by a signal; the next start continues from its newest checkpoint")
    lines = run.log.read_text(encoding="utf-8").splitlines()
    if status:
        raise RunFailure(f"status {status}: {lines[-1] if lines else 'no output'}")
    return f"trained and evaluated in {time.perf_counter() - started:.0f} s"


def _progress_callback(report):
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_step_end(self, args, state, control, **objects):
            report(state.global_step / max(state.max_steps, 1))

    return Progress()
