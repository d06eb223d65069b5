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

DRAWS = 4  # of each sequence's sketches; a single draw is dominated by a few rows near the teacher


def share_deviation(gradients: Tensor, share: float, micro_batch: int) -> float:
    """The standard deviation of the sum of the gradients (S, P) when the teacher runs on `share` of each micro-batch of sequences that
    follow each other, relative to the sum's norm; docs/objective.md derives it. share·micro_batch must be a whole number."""
    parts = gradients.double().unflatten(0, (-1, micro_batch))
    scatter = (parts - parts.mean(1, keepdim=True)).square().sum() / (micro_batch - 1)
    return (((1 - share) / share * micro_batch * scatter).sqrt() / gradients.double().sum(0).norm()).item()


def sketch_deviation(gradients: Tensor, square: float) -> float:
    """The same for sketches, whose draws are independent and without bias. square: the sum over the sequences of the mean square error
    of the estimated gradient (P,)."""
    return square**0.5 / gradients.double().sum(0).norm().item()


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
        exact, squares = self._gradients(student)
        student.train()
        print(
            f"step {state.global_step}, T = {self.temperature:g}: deviation of the gradient of {len(exact)} sequences"
        )
        for share in self.shares:
            print(f"  teacher on a share of {share:<10g} {share_deviation(exact, share, self.micro_batch):7.3f}")
        for entries, square in squares.items():
            print(f"  sketch of {entries:<5} tokens a row   {sketch_deviation(exact, square):7.3f}", flush=True)

    def _gradients(self, student: nn.Module) -> tuple[Tensor, dict[int, float]]:
        """The exact gradients (S, P) of each sequence's sum over rows, and the square that `sketch_deviation` takes by the number of
        tokens that a sketch keeps, over DRAWS draws."""
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        parts, _ = split(student, self.batch["input_ids"][:1, :2])
        head, generator = parts.head.weight, torch.Generator().manual_seed(0)
        exact, squares = [], dict.fromkeys(self.entries, 0.0)
        for number in range(len(self.batch["input_ids"])):
            inputs = {name: self.batch[name][number : number + 1] for name in ("input_ids", "attention_mask")}
            mask = counted(self.batch["labels"][number : number + 1])
            with torch.no_grad(), teacher(student):
                hidden = parts.body(**inputs, use_cache=False).last_hidden_state[:, :-1][mask]
            logits = student(**inputs, use_cache=False).logits[:, :-1][mask]

            def gradient(kl: Tensor, logits: Tensor = logits) -> Tensor:
                found = torch.autograd.grad(kl * len(logits), trained, retain_graph=True)
                return torch.cat([each.flatten() for each in found])

            exact.append(gradient(consistency_kl(logits, hidden @ head.T, self.temperature)))
            for entries in self.entries:
                for _ in range(DRAWS):
                    uniforms = torch.rand(len(hidden), 2, dtype=torch.float64, generator=generator)
                    sketch = sketch_of(hidden, head, self.temperature, uniforms, entries).read(len(head))
                    wrong = gradient(sketched_kl(logits, sketch, self.temperature)) - exact[-1]
                    squares[entries] += wrong.double().square().sum().item() / DRAWS
        return torch.stack(exact), squares


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
