"""How fast a run is, where a step's time goes, and how much memory it takes: measured on the logged steps only.

A device works behind the program's back, so a phase ends only when the device has been waited for. That is done on the steps
that are logged; the others run as they would without this.
"""

import time

import torch

from ..provenance import PeakMemory

PHASES = ("data", "teacher", "forward", "backward", "optimizer")


class StepClock:
    """Seconds of one optimiser step by phase: what lies between two laps belongs to the phase of the later one.

    data: the batch is fetched and moved (waiting for it, while the device may still be at the step before); teacher: its
    forward passes; forward: the student's, and the objective; backward: also the exchange and the clipping of gradients, and
    under DeepSpeed the optimiser's step; optimizer: the rest of the step.
    """

    def __init__(self):
        self.is_on = False
        self.seconds: dict[str, float] = {}
        self.mark = time.perf_counter()

    def rest(self) -> None:
        """What comes next, up to now, belongs to no phase."""
        self.is_on, self.mark = False, time.perf_counter()

    def begin(self, logged: bool) -> None:
        """An optimiser step begins, its batch has been fetched; laps count if it is logged."""
        fetched = time.perf_counter() - self.mark
        self.is_on, self.seconds = logged, {}
        if logged:
            self.mark = _now()  # what the device still had to do is of the steps before
            self.seconds["data"] = fetched

    def lap(self, phase: str) -> None:
        """End `phase`."""
        if self.is_on:
            now = _now()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.mark
            self.mark = now


class Gauges:
    """What metrics.jsonl says of a run's speed and memory. clock: the model's.

    memory: of a run on a processor the PeakMemory that watches it; where there is none, its peak is None.
    """

    def __init__(self, clock: StepClock):
        self.clock = clock
        self.memory: PeakMemory | None = None

    def start(self, seconds: float = 0.0, tokens: int = 0) -> None:
        """Training begins. seconds, tokens: those of the last line, where a run is continued."""
        self.seconds, self.tokens = seconds, tokens
        self.clock.rest()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def row(self, seconds: float, tokens: int) -> dict[str, float | int | None]:
        """Of a logged step that ended after so many seconds and trained tokens of the run.

        tokens_per_second: since the line before, over all processes; seconds_PHASE: of this step, on this process;
        peak_memory: bytes so far, of this process: its device's allocations, or on a processor its resident memory.
        """
        speed = (tokens - self.tokens) / (seconds - self.seconds)
        self.seconds, self.tokens = seconds, tokens
        phases = {f"seconds_{phase}": self.clock.seconds.get(phase, 0.0) for phase in PHASES}
        peak = self.memory.peak if self.memory else None
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        return {"tokens_per_second": speed, **phases, "peak_memory": peak}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
