"""Estimators of the gradient of consistency from a sketch of the teacher, and their errors along a training (sketch_error.py)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..data.cache import load_samples
from ..data.collator import PadRight, counted
from ..data.formats import read_conversations
from ..data.sources import read_table
from ..data.templates import make_template
from ..methods.teacher import teacher
from ..models import load_tokenizer
from ..objective.draw import sketch_of
from ..objective.head import split
from ..objective.sketch import Sketch, add_slope, against
from ..training.arguments import TrainArguments
from ..training.run import train

DRAWS = 2  # over which the errors are averaged


def _u(p: Tensor, q: Tensor, kept: Sketch) -> Tensor:
    """−û beside the full term of the student."""
    return q.scatter_add(1, kept.ids, -kept.weight * kept.p)


def _difference(p: Tensor, q: Tensor, kept: Sketch) -> Tensor:
    """The same draws for teacher and student."""
    return torch.zeros_like(q).scatter_add_(1, kept.ids, kept.weight * (q.gather(1, kept.ids) - kept.p))


def _mixture(p: Tensor, q: Tensor, kept: Sketch) -> Tensor:
    return (_u(p, q, kept) + _difference(p, q, kept)) / 2


def _bounded(p: Tensor, q: Tensor, kept: Sketch) -> Tensor:
    """The estimator in use: the same draws, but the student's excess above the threshold in full (objective/sketch.py)."""
    found = against(kept, q.log(), q, q.new_zeros(len(q), 1).double())
    return add_slope(torch.zeros_like(q), kept, found, q, q.new_ones(len(q), 1))


def _independent(p: Tensor, q: Tensor, kept: Sketch) -> Tensor:
    """û from the 64 most likely tokens and 64 independent draws of the rest, in the bytes of 96 tokens with probabilities."""
    half = min(64, p.shape[1] // 2)
    top = p.topk(half, dim=-1).indices
    rest = p.scatter(1, top, 0.0)
    ids = torch.multinomial(rest, half, replacement=True)
    g = q.scatter_add(1, top, -p.gather(1, top))
    return g.scatter_add_(1, ids, -(rest.sum(-1, keepdim=True) / half).expand(-1, half))


ESTIMATORS: dict[str, Callable[[Tensor, Tensor, Sketch], Tensor]] = {
    "u, 64 largest + 64 independent draws": _independent,
    "u, systematic draws": _u,
    "difference": _difference,
    "half u, half difference": _mixture,
    "bounded difference (in use)": _bounded,
}


@torch.no_grad()
def errors(hidden: Tensor, teacher_hidden: Tensor, weight: Tensor, temperature: float, entries: int) -> tuple:
    """{estimator: (error of the rows, its median over the rows, error of the micro-batch)}, relative to the exact gradient, and the
    mean number of a row's tokens that are certainly kept.

    hidden, teacher_hidden: (N, d); weight: (V, d). A row's gradient is that for its hidden state; the micro-batch's is that of a
    d×d matrix behind the last layer, Σ_n gradient_n·teacher_nᵀ. Root mean squares over the rows and DRAWS draws.
    """
    p, q = (torch.softmax(each @ weight.T / temperature, -1) for each in (teacher_hidden, hidden))
    exact = (q - p) @ weight
    size, together = exact.norm(dim=-1), exact.T @ teacher_hidden
    generator, sums = torch.Generator().manual_seed(0), {name: [0.0, 0.0, 0.0] for name in ESTIMATORS}
    for _ in range(DRAWS):
        uniforms = torch.rand(len(p), 2, dtype=torch.float64, generator=generator)
        kept = sketch_of(teacher_hidden, weight, temperature, uniforms, entries).read(len(weight))
        for name, estimate in ESTIMATORS.items():
            wrong = estimate(p, q, kept) @ weight - exact
            found = wrong.norm() / exact.norm(), (wrong.norm(dim=-1) / size).median(), wrong.T @ teacher_hidden
            values = (found[0] ** 2, found[1], (found[2].norm() / together.norm()) ** 2)
            sums[name] = [total + float(value) / DRAWS for total, value in zip(sums[name], values, strict=True)]
    certain = (kept.weight == 1).sum(-1).double().mean().item()
    return {name: (rows**0.5, median, batch**0.5) for name, (rows, median, batch) in sums.items()}, certain


class Measure(TrainerCallback):
    """Print the errors after each of `steps`, on the rows of `batch`."""

    def __init__(self, steps: list[int], batch: dict[str, Tensor], entries: int):
        self.steps, self.entries = steps, entries
        self.labels, self.inputs = batch["labels"], {name: batch[name] for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **more):
        if state.global_step not in self.steps:
            return
        student, mask = model.student, counted(self.labels)
        student.eval()
        parts, _ = split(student, self.inputs["input_ids"][:1, :2])

        def rows() -> Tensor:
            return parts.body(**self.inputs, use_cache=False).last_hidden_state[:, :-1][mask]

        hidden = rows()
        with teacher(student):
            teacher_hidden = rows()
        student.train()
        for temperature in (1.0, 2.0):
            show(
                state.global_step,
                temperature,
                *errors(hidden, teacher_hidden, parts.head.weight, temperature, self.entries),
            )


def show(step: int, temperature: float, found: dict, certain: float) -> None:
    """Print one table."""
    print(
        f"step {step}, T = {temperature:g}: relative error of a row, its median, of the micro-batch; {certain:.1f} tokens certain"
    )
    for name, values in found.items():
        print(f"  {name:38} " + " ".join(f"{value:7.3f}" for value in values), flush=True)


def batch_of(arguments: TrainArguments, file: str, samples: int) -> dict[str, Tensor]:
    """The first samples of `file`, read as the training data are."""
    tokenizer = load_tokenizer(arguments.model, trust_remote_code=arguments.trust_remote_code)
    template = make_template(arguments.template, tokenizer, arguments.special_tokens_in_text)
    table = read_table(arguments.data, file, arguments.data_split, samples, shuffle_seed=None)
    conversations, _ = read_conversations(
        table, arguments.fields, arguments.skip_bad_rows, arguments.ignore_columns or ()
    )
    encoded, _ = load_samples(tokenizer, template, conversations, arguments.max_length)
    return PadRight(tokenizer)([*encoded])


def measure(arguments: TrainArguments, file: str, samples: int, steps: list[int]) -> None:
    """Train, and print the errors after each of `steps` on the first `samples` rows of `file`."""
    batch = batch_of(arguments, file, samples)
    train(replace(arguments, max_steps=max(steps)), [Measure(steps, batch, arguments.teacher_cache_entries)])
