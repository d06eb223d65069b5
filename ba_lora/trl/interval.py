"""The callback of `Anchored`: the weights of each step, the check of the terms, and their means between two logs."""

import torch
from torch import Tensor, distributed

from ..training.callbacks import ObjectiveCallback


class IntervalCallback(ObjectiveCallback):
    """An ObjectiveCallback that leaves the trainer's rhythm of logging alone."""

    makes_log = False

    def on_train_begin(self, args, state, control, **objects):
        super().on_train_begin(args, state, control, **objects)
        self.totals: dict[str, Tensor] = {}
        self.steps = 0

    def on_step_end(self, args, state, control, **objects):
        for name, value in self.model.sums.items():
            self.totals[name] = self.totals.get(name, 0) + value.double()
        self.steps += 1
        super().on_step_end(args, state, control, **objects)

    def means(self) -> dict[str, float]:
        """{term: mean over the steps since the last call}, over all processes, each of which has to call this."""
        names = [name for name in self.totals if name != "loss"]
        if not names:
            return {}
        values = torch.stack([self.totals[name] for name in names]) / self.steps
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(values)
        self.totals, self.steps = {}, 0
        return dict(zip(names, values.tolist(), strict=True))
