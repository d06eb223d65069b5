"""The work of the benchmark: one synthetic micro-batch on one adapted model, and every way to compute a loss from it.

All contestants train the same adapter on the same rows from the same values, so their times differ only by the loss, or by the form of
the start. With a random start the two forms differ by its B·A, which is small.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..data.collator import counted
from ..errors import UserError
from ..methods.delta import start_tensors
from ..methods.precision import keep_inputs_under_autocast
from ..methods.teacher import teacher
from ..models import load_model
from ..objective.chunked import factor_of
from ..objective.head import Split, split
from ..objective.settings import REGULARIZERS, WEIGHTS, Objective
from ..training.arguments import TrainArguments
from ..training.objective_model import ObjectiveModel
from ..training.teacher_rows import PREFIX, compute
from ..training.teacher_share import TeacherShare
from .bodies import adapt, body_config, make, random_llama
from .cases import Case
from .clock import wait
from .published import published_loss

ENTRIES = TrainArguments.teacher_cache_entries
CONSTANT = {each.schedule: "constant" for each in REGULARIZERS}  # every term at full weight from the first step


def base_of(case: Case) -> nn.Module:
    """The model of a case on its device, the same at every call."""
    torch.manual_seed(0)
    if case.model:
        return load_model(case.model, case.dtype).to(case.device)
    if case.body:
        return make(body_config(case.body, case.layers), case.dtype, case.device, decaying=True)
    config = random_llama(case.vocabulary, case.hidden, case.layers, case.length)
    return make(config, case.dtype, case.device)


class Work:
    """The micro-batch, the adapted model and its optimiser; `step` is one optimiser step with any of `PREPARE`."""

    def __init__(self, case: Case, form: str = "residual"):
        self.case = case
        torch.set_num_threads(case.threads)
        base = base_of(case)
        if case.length > base.config.max_position_embeddings:
            raise UserError(
                f"--length {case.length} is above the model's {base.config.max_position_embeddings} positions"
            )
        began = time.perf_counter()
        self.student = adapt(base, case.rank, case.start, case.device, form).train()
        if case.dtype == "bfloat16":  # as the trainer does
            keep_inputs_under_autocast(self.student)
        wait(case.device)
        self.start_seconds = time.perf_counter() - began
        self.batch = synthetic_batch(case, base.get_input_embeddings().num_embeddings)
        changes = CONSTANT if case.svd_k is None else CONSTANT | {"svd_k": case.svd_k}
        self.objective = Objective.preset(case.preset, **changes)
        self.trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        with torch.no_grad():  # move away from the teacher, as in the middle of a training
            starts = list(start_tensors(self.student).values()) or self.trained
            for parameter, start in zip(self.trained, starts, strict=True):
                parameter.add_(torch.randn_like(parameter) * start.std() * 0.05)
        self.optimiser = torch.optim.AdamW(
            self.trained, lr=0.0
        )  # the same work, and every step starts from the same values

    @cached_property
    def factor(self) -> Tensor:
        """The factor of the head: computed once per model, so not part of a step."""
        return factor_of(self.student.get_output_embeddings().weight)

    @cached_property
    def second_model(self) -> nn.Module:
        """The teacher of the published algorithm: the model as it was before it was adapted."""
        return base_of(self.case).requires_grad_(False)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass, as in training on a GPU."""
        return torch.autocast(self.case.device, torch.bfloat16, enabled=self.case.dtype == "bfloat16")

    def step(self, loss_of: Callable[[], Tensor]) -> Tensor:
        """Run forward, backward and optimiser; return the loss."""
        self.optimiser.zero_grad(set_to_none=True)
        with self.autocast():
            loss = loss_of()
        loss.backward()
        self.optimiser.step()
        return loss.detach()


def synthetic_batch(case: Case, vocabulary: int) -> dict[str, Tensor]:
    """input_ids, attention_mask, labels (B, T): random tokens without padding, the last part of each sample trained."""
    ids = torch.randint(0, vocabulary, (case.batch, case.length), device=case.device)
    labels = ids.clone()
    labels[:, : case.length - case.rows // case.batch] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _stock(work: Work) -> Callable[[], Tensor]:
    return lambda: work.student(**work.batch, use_cache=False).loss  # Trainer sets use_cache to False as well


def _published(work: Work) -> Callable[[], Tensor]:
    lambdas, second = work.objective.weights(0, 1), work.second_model
    return lambda: published_loss(work.student, second, work.objective, lambdas, **work.batch)[0]


def _objective_model(
    work: Work, kept: tuple[str, ...] = WEIGHTS, chunked: bool = True, share: float = 1.0
) -> ObjectiveModel:
    """Our objective with the weights named in `kept`; the other weights are 0. share: of the samples, for the teacher."""
    objective = replace(work.objective, **{weight: 0.0 for weight in WEIGHTS if weight not in kept})
    options = {"chunked": chunked, "teacher_share": TeacherShare(share, work.case.batch)}
    model = ObjectiveModel(work.student, objective, **options).train()
    model.factor = work.factor if "lambda3" in kept and chunked else None
    return model


def _ours(*kept: str, chunked: bool = True) -> Callable[[Work], Callable[[], Tensor]]:
    def prepare(work: Work) -> Callable[[], Tensor]:
        model = _objective_model(work, kept, chunked)
        return lambda: model(**work.batch).loss

    return prepare


def _shared(share: float) -> Callable[[Work], Callable[[], Tensor]]:
    """Our objective with the teacher on a share of the samples; each step draws others."""

    def prepare(work: Work) -> Callable[[], Tensor]:
        model, steps = _objective_model(work, share=share), itertools.count()

        def forward() -> Tensor:
            model.begin_step(next(steps), 1)
            return model(**work.batch).loss

        return forward

    return prepare


def _cached(form: str) -> Callable[[Work], Callable[[], Tensor]]:
    """Our objective with the teacher's contribution to each row computed beforehand, in a form of the cache."""

    def prepare(work: Work) -> Callable[[], Tensor]:
        model, parts = _objective_model(work), _parts(work, "cached")
        hidden, facts = _teacher_rows(work, parts), {"form": form, "dtype": "float32", "entries": ENTRIES}
        facts["temperature"] = work.objective.temperature
        made = compute(facts, hidden, parts.head, torch.rand(len(hidden), 2))
        rows = {PREFIX + name: tensor for name, tensor in made.items()}
        return lambda: model(**work.batch, **rows).loss

    return prepare


def _liger(work: Work) -> Callable[[], Tensor]:
    """Task loss and consistency by Liger's loss in chunks, beside our teacher. Its Jensen-Shannon divergence with beta 0 is KL."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    body, head = parts = _parts(work, "liger")
    mask, targets = counted(work.batch["labels"]), work.batch["labels"][:, 1:]
    temperature = work.objective.temperature
    soft = work.objective.weights(0, 1)[0] * temperature**2
    loss = LigerFusedLinearJSDLoss(1.0, soft, beta=0.0, temperature=temperature, compiled=False)
    inputs = {name: work.batch[name] for name in ("input_ids", "attention_mask")}

    def forward() -> Tensor:
        other = _teacher_rows(work, parts)
        hidden = body(**inputs, use_cache=False).last_hidden_state[:, :-1][mask]
        weight = head.weight.to(hidden.dtype)
        return loss(hidden, weight, other, weight, targets[mask], student_bias=None, teacher_bias=None)

    return forward


def _parts(work: Work, name: str) -> Split:
    parts, reason = split(work.student, work.batch["input_ids"][:1, :2])
    if parts is None:
        raise UserError(f"'{name}' needs the chunked objective, and {reason}; leave it out with --only")
    return parts


def _teacher_rows(work: Work, parts: Split) -> Tensor:
    """The teacher's hidden states of the rows that count (N, d)."""
    inputs = {name: work.batch[name] for name in ("input_ids", "attention_mask")}
    with teacher(work.student), work.autocast():
        hidden = parts.body(**inputs, use_cache=False).last_hidden_state[:, :-1]
    return hidden[counted(work.batch["labels"])]


PREPARE = {  # contestant → a function that turns the work into one that gives the loss
    "pissa": _stock,
    "published": _published,
    "dense-bare": _ours(chunked=False),
    "dense": _ours(*WEIGHTS, chunked=False),
    "floor": _ours(),
    **{each.name: _ours(each.weight) for each in REGULARIZERS},
    "ours": _ours(*WEIGHTS),
    "share-0.5": _shared(0.5),
    "share-0.25": _shared(0.25),
    "cached": _cached("exact"),
    "sketch": _cached("sketch"),
    "delta-bare": _ours(),
    "delta": _ours(*WEIGHTS),
    "liger": _liger,
}
