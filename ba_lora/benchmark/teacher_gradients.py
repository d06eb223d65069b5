"""The gradients of consistency for an adapter, sequence by sequence, and the noise of their estimates (teacher_noise.py)."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..data.collator import counted
from ..methods.teacher import teacher
from ..objective.draw import sketch_of
from ..objective.head import split
from ..objective.regularizers import consistency_kl
from ..objective.sketch import sketched_kl
from ..training.arguments import TrainArguments
from ..training.run import train
from .sketch_estimators import batch_of


def share_deviation(gradients: Tensor, share: float, micro_batch: int) -> float:
    """The standard deviation of the sum of the gradients (S, P) when the teacher runs on `share` of each micro-batch of sequences that
    follow each other, relative to the sum's norm; docs/objective.md derives it. share·micro_batch must be a whole number."""
    parts = gradients.double().unflatten(0, (-1, micro_batch))
    scatter = (parts - parts.mean(1, keepdim=True)).square().sum() / (micro_batch - 1)
    return (((1 - share) / share * micro_batch * scatter).sqrt() / gradients.double().sum(0).norm()).item()


def sketch_deviation(gradients: Tensor, estimates: Tensor) -> float:
    """The same for sketches, from one independent unbiased estimate of every sequence's gradient. Both: (S, P)."""
    return ((estimates.double() - gradients.double()).norm() / gradients.double().sum(0).norm()).item()


class Measure(TrainerCallback):
    """Print the deviations after each of `steps`, on the sequences of `batch`."""

    def __init__(
        self, steps: list[int], batch: dict[str, Tensor], shares: tuple, entries: tuple, arguments: TrainArguments
    ):
        self.steps, self.batch, self.shares, self.entries = steps, batch, shares, entries
        self.micro_batch, self.temperature = arguments.micro_batch_size, arguments.objective().temperature

    def on_step_end(self, args, state, control, model=None, **more):
        if state.global_step not in self.steps:
            return
        student = model.student
        student.eval()
        exact, estimates = self._gradients(student)
        student.train()
        print(
            f"step {state.global_step}, T = {self.temperature:g}: deviation of the gradient of {len(exact)} sequences"
        )
        for share in self.shares:
            print(f"  teacher on a share of {share:<10g} {share_deviation(exact, share, self.micro_batch):7.3f}")
        for entries, found in estimates.items():
            print(f"  sketch of {entries:<5} tokens a row  {sketch_deviation(exact, found):7.3f}", flush=True)

    def _gradients(self, student: nn.Module) -> tuple[Tensor, dict[int, Tensor]]:
        """The exact gradients (S, P) of each sequence's sum over rows, and one estimate of each by sketches of each size."""
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        parts, _ = split(student, self.batch["input_ids"][:1, :2])
        generator = torch.Generator().manual_seed(0)
        exact, estimates = [], {entries: [] for entries in self.entries}
        for number in range(len(self.batch["input_ids"])):
            inputs = {name: self.batch[name][number : number + 1] for name in ("input_ids", "attention_mask")}
            mask = counted(self.batch["labels"][number : number + 1])
            with torch.no_grad(), teacher(student):
                hidden = parts.body(**inputs, use_cache=False).last_hidden_state[:, :-1][mask]
            logits = student(**inputs, use_cache=False).logits[:, :-1][mask]
            kls = {0: consistency_kl(logits, hidden @ parts.head.weight.T, self.temperature)}
            for entries in self.entries:
                uniforms = torch.rand(len(hidden), 2, dtype=torch.float64, generator=generator)
                words = sketch_of(hidden, parts.head.weight, self.temperature, uniforms, entries)
                kls[entries] = sketched_kl(logits, words.read(len(parts.head.weight)), self.temperature)
            for entries, kl in kls.items():
                found = torch.autograd.grad(kl * len(hidden), trained, retain_graph=entries != self.entries[-1])
                (exact if entries == 0 else estimates[entries]).append(torch.cat([each.flatten() for each in found]))
        return torch.stack(exact), {entries: torch.stack(found) for entries, found in estimates.items()}


def measure(
    arguments: TrainArguments,
    file: str,
    samples: int,
    steps: list[int],
    shares: tuple[float, ...],
    entries: tuple[int, ...],
) -> None:
    """Train, and print the deviations after each of `steps` on the first `samples` rows of `file`."""
    batch = batch_of(arguments, file, samples)
    train(replace(arguments, max_steps=max(steps)), [Measure(steps, batch, shares, entries, arguments)])
