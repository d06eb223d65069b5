"""The base class of models with an objective: the weights and sums of one optimiser step, and the interface to a trainer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..methods.teacher import has_teacher, teacher
from ..modes import evaluating
from ..objective import schedules
from ..objective.settings import REGULARIZERS, Objective
from ..objective.spectrum import searches
from .gauges import StepClock
from .taught import Taught, present_in, selected
from .teacher_share import TeacherShare, check_share, draw


class StepModel(nn.Module):
    """An adapted model whose forward returns the whole objective as its loss, so that any trainer can drive it.

    DistributedDataParallel and DeepSpeed see one forward and one backward; the teacher runs inside. `student` is the
    model from `attach`. `begin_step` is called once per optimiser step (ObjectiveCallback does it); each training forward
    adds its terms with `record`.

    all_terms: also compute terms whose weight is 0. gradient_norms: keep each term's gradient on the steps that
    `begin_step` marks as logged (costs one backward per term). teacher_share: in training, the share of the sequences on which the
    teacher runs; without one, all of them.
    """

    # the terms that are per micro-batch: the step's value is their mean over micro-batches and processes
    averaged: tuple[str, ...]
    accepts_loss_kwargs = True  # Trainer then passes num_items_in_batch and does not divide by the accumulation

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        *,
        all_terms: bool = False,
        gradient_norms: bool = False,
        teacher_share: TeacherShare | None = None,
    ):
        super().__init__()
        if objective.uses_teacher() and not has_teacher(student):
            raise UserError(
                "lambda1 > 0 needs the teacher and this model keeps no initial copy; attach it with keep_initial=True"
            )
        self.student, self.objective, self.teacher_share = student, objective, teacher_share or TeacherShare()
        check_share(self.teacher_share.share, objective)
        self.all_terms, self.gradient_norms = all_terms, gradient_norms
        self.has_teacher = has_teacher(student)
        self.clock = StepClock()
        self.begin_step(0, 1)

    def __call__(self, *args, **kwargs):
        self.clock.lap("data")
        output = super().__call__(*args, **kwargs)
        self.clock.lap("forward")
        return output

    @property
    def config(self):
        return self.student.config

    def gradient_checkpointing_enable(self, **options) -> None:
        self.student.gradient_checkpointing_enable(**options)

    def items(self, labels: Tensor) -> Tensor:
        """The number of items of a micro-batch; the means of a step are taken over items."""
        raise NotImplementedError

    def begin_step(
        self,
        step: int,
        total: int,
        micro_batches: int = 1,
        ranks: int = 1,
        logged: bool = False,
        *,
        rank: int = 0,
        short_from: int | None = None,
    ) -> None:
        """Set the weights of this optimiser step and reset the sums. logged: the values of this step will be read.

        rank: this process's. short_from: the first micro-batch of the step that may be short on some rank; None if none may.
        """
        self.lambdas = self.objective.weights(step, total)
        self.place = (step, rank)
        self.micro = 0  # number of the next micro-batch of this step that needs the teacher
        self.short_from = short_from if ranks > 1 else None
        self.share = 1.0 / (micro_batches * ranks)  # the weight of one micro-batch in the step's mean
        self.logged = logged
        self.keep_gradients = logged and self.gradient_norms
        self.sums: dict[str, Tensor] = {}  # over this process's micro-batches; statistics are already averaged
        self.rows: Tensor | int = 0  # trained tokens, summed in the same way
        self.gradients: dict[str, list[Tensor]] = {}
        self.clock.begin(logged)

    def measure(self, **batch) -> tuple[dict[str, Tensor | None], int]:
        """(terms, the number of items) of a batch like that of `forward`, inside `measuring`: the terms of `averaged` as they are, the
        others as sums over the items. A classifier adds "accuracy", the sum of the right answers."""
        raise NotImplementedError

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside the block `measure` can be called: evaluation mode, no gradient, and the weights that a schedule multiplies, so that
        every term with a weight is computed at every step. Nothing of the training changes."""
        kept, counted = (self.lambdas, self.share, self.keep_gradients), dict(searches)
        self.lambdas, self.share, self.keep_gradients = self.objective.maxima(), 1.0, False
        try:
            with evaluating(self), torch.no_grad():
                yield
        finally:
            self.lambdas, self.share, self.keep_gradients = kept
            searches.update(counted)

    def needs_teacher(self) -> bool:
        """Return True if this step needs the teacher."""
        is_used = any(each.uses_teacher and weight > 0 for each, weight in zip(REGULARIZERS, self.lambdas, strict=True))
        return is_used or (self.all_terms and self.has_teacher)

    def teach(self, run: Callable[..., Tensor], inputs: dict, labels: Tensor, owners: Callable[[], Tensor]) -> Taught:
        """Run the teacher on all sequences of a micro-batch or, in training, on those that are drawn.

        run(labels, **inputs) → the values of the rows (n, …) of these sequences. inputs, labels: of all sequences. owners() →
        (N,): the number of the sequence that each row of the micro-batch belongs to.
        """
        if not self.needs_teacher():
            return Taught()
        if not self.training or self.teacher_share.share == 1:
            return Taught(self._run_teacher(run, inputs, labels))
        micro, self.micro = self.micro, self.micro + 1
        may_be_short = self.short_from is not None and micro >= self.short_from
        step, rank = self.place
        present = present_in(inputs, labels)
        drawn = draw(self.teacher_share, step, micro, rank, present, may_be_short)
        sequences = torch.tensor(drawn.sequences, dtype=torch.long, device=labels.device)
        rows = torch.isin(owners(), sequences).nonzero().squeeze(1)
        if not drawn.sequences:
            return Taught(None, rows, drawn.weight)
        cut = selected({**inputs, "labels": labels}, sequences, present)
        cut_labels = cut.pop("labels")
        return Taught(self._run_teacher(run, cut, cut_labels), rows, drawn.weight)

    def _run_teacher(self, run: Callable[..., Tensor], inputs: dict, labels: Tensor) -> Tensor:
        with teacher(self.student):
            values = run(labels, **inputs)
        self.clock.lap("teacher")
        return values

    def weights(self, teacher_entropy: Callable[[], Tensor], classes: int) -> tuple[float, ...]:
        """The weights of this micro-batch; an adaptive one follows the entropy of the teacher, which runs, on its rows."""
        form, weights = self.objective, list(self.lambdas)
        for place, each in enumerate(REGULARIZERS):
            if getattr(form, each.schedule) == "adaptive":
                lowest = form.lambda1_min if form.lambda1_min is not None else 0.1 * weights[place]
                weights[place] = schedules.adaptive(lowest, weights[place], float(teacher_entropy()), classes)
        return tuple(weights)

    def record(self, terms: dict[str, Tensor | None], loss: Tensor, weights: tuple[float, ...]) -> None:
        """Add the terms of a micro-batch, and the weights that differ between micro-batches, to those of the step."""
        values = {name: term.detach() for name, term in terms.items() if term is not None}
        values["loss"] = loss.detach().clone()  # Trainer scales the loss in place
        for each, weight in zip(REGULARIZERS, weights, strict=True):
            if getattr(self.objective, each.schedule) == "adaptive":
                values[each.weight] = torch.full_like(values["loss"], weight) * self.share
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + (value * self.share if name in self.averaged else value)
        if self.keep_gradients:
            self._keep_gradients(terms)

    def _keep_gradients(self, terms: dict) -> None:
        """Add the gradient of each unweighted term to its sum over the step's micro-batches."""
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        for name, term in terms.items():
            if term is None or not term.requires_grad:
                continue
            scaled = term * self.share if name in self.averaged else term
            pieces = torch.autograd.grad(scaled, trained, retain_graph=True, allow_unused=True)
            pieces = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, pieces, strict=True)]
            kept = self.gradients.setdefault(name, [torch.zeros_like(p) for p in trained])
            for total, piece in zip(kept, pieces, strict=True):
                total += piece
