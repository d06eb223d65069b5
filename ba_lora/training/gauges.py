"""Speed of a run, time per phase of a step, and memory use, measured only on logged steps.

A device runs asynchronously, so a phase ends only after a synchronisation. Only logged steps synchronise; the others run as
they would without this module.
"""

import time

import torch

from ..objective.spectrum import searches
from ..provenance import PeakMemory

PHASES = ("data", "teacher", "forward", "backward", "optimizer")


class StepClock:
    """Seconds of one optimiser step by phase: the time between two laps belongs to the phase of the later lap.

    data: fetching and moving the batch (waiting for it, while the device may still be working on the previous step); teacher:
    its forward passes; forward: the student's forward and the objective; backward: includes the exchange and clipping of
    gradients and, under DeepSpeed, the optimiser's step; optimizer: the rest of the step.
    """

    def __init__(self):
        self.is_on = self.on_gpu = False
        self.seconds: dict[str, float] = {}
        self.mark = time.perf_counter()

    def rest(self) -> None:
        """Start a period that belongs to no phase."""
        self.is_on, self.mark = False, time.perf_counter()

    def begin(self, logged: bool) -> None:
        """Begin an optimiser step after its batch was fetched. Laps count if the step is logged."""
        fetched = time.perf_counter() - self.mark
        self.is_on, self.seconds = logged, {}
        if logged:
            self.mark = self._now()  # pending device work belongs to earlier steps
            self.seconds["data"] = fetched

    def lap(self, phase: str) -> None:
        """End `phase`."""
        if self.is_on:
            now = self._now()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.mark
            self.mark = now

    def _now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


class Gauges:
    """Speed and memory for metrics.jsonl. clock: the model's StepClock.

    memory: on the CPU, the PeakMemory that watches the run; without it the peak is None.
    """

    def __init__(self, clock: StepClock):
        self.clock = clock
        self.memory: PeakMemory | None = None

    def start(self, device: torch.device, seconds: float = 0.0, tokens: int = 0) -> None:
        """Begin training on `device`. seconds, tokens: the values of the last line if a run is resumed."""
        self.seconds, self.tokens, self.clock.on_gpu = seconds, tokens, device.type == "cuda"
        self.clock.rest()
        if self.clock.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        """The most bytes so far, of this process: allocations on its GPU, or resident memory on the CPU."""
        if self.clock.on_gpu:
            return torch.cuda.max_memory_allocated()
        return self.memory.peak if self.memory else None

    def row(self, seconds: float, tokens: int) -> dict[str, float | int | None]:
        """The values for a logged step. seconds, tokens: time and trained tokens of the run up to the end of the step.

        tokens_per_second: since the previous line, over all processes; seconds_PHASE: of this step, on this process;
        peak_memory: see `peak`; spectrum_searches_failed: the share of this process's searches for the leading singular triplets
        since the previous line after which all of them were computed; None without a search.
        """
        speed = (tokens - self.tokens) / (seconds - self.seconds)
        self.seconds, self.tokens = seconds, tokens
        phases = {f"seconds_{phase}": self.clock.seconds.get(phase, 0.0) for phase in PHASES}
        failed = searches["failed"] / searches["done"] if searches["done"] else None
        searches.update(done=0, failed=0)
        return {
            "tokens_per_second": speed,
            **phases,
            "peak_memory": self.peak(),
            "spectrum_searches_failed": failed,
        }
