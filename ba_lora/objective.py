"""Task loss plus weighted regularizers: which tokens count, how they are shifted, and what the mean is over.

Position t predicts token t + 1, and counts where labels[t + 1] is not -100. The same rows feed the task loss and all three
regularizers. Token terms are sums over the rows divided by the rows of the whole optimiser step (over micro-batches and
processes), so the loss does not depend on how the batch is cut. The spectrum term belongs to a micro-batch and is averaged
over the micro-batches and processes of the step.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from . import regularizers, schedules
from .data.instruction import IGNORED
from .errors import UserError, choose
from .teacher import initial_copy, teacher

TERMS = ("task", "consistency", "diversity", "spectrum")


@dataclass(frozen=True)
class Objective:
    """The regularizers' forms, weights and schedules. `Objective.preset(name)` gives the published ones."""

    lambda1: float = 0.0  # weight of consistency
    lambda2: float = 0.0  # weight of diversity
    lambda3: float = 0.0  # weight of the spectrum
    consistency: str = "kl"  # kl | mse
    temperature: float = 1.0  # of consistency "kl"; > 0
    diversity: str = "entropy"  # entropy | covariance
    top_k: int | None = None  # classes that the entropy looks at; None is all of them
    svd_k: int = 10  # leading singular values
    svd_norm: str = "nuclear"  # nuclear | frobenius
    lambda1_schedule: str = "constant"  # any of schedules.SCHEDULES, or "adaptive"
    lambda2_schedule: str = "constant"
    lambda3_schedule: str = "constant"
    warmup: float = 0.2  # fraction of the steps; see schedules.py
    ramp: float = 0.05  # fraction of the steps; two_phase only
    lambda1_min: float | None = None  # of the adaptive schedule; None is lambda1 / 10

    def __post_init__(self):
        choose("consistency", self.consistency, ("kl", "mse"))
        choose("diversity", self.diversity, ("entropy", "covariance"))
        choose("svd_norm", self.svd_norm, ("nuclear", "frobenius"))
        choose("lambda1_schedule", self.lambda1_schedule, [*schedules.SCHEDULES, "adaptive"])
        choose("lambda2_schedule", self.lambda2_schedule, schedules.SCHEDULES)
        choose("lambda3_schedule", self.lambda3_schedule, schedules.SCHEDULES)
        for name in ("lambda1", "lambda2", "lambda3"):
            if not getattr(self, name) >= 0 or math.isinf(getattr(self, name)):
                raise UserError(f"{name} must be a number of at least 0, got {getattr(self, name)}")
        if self.svd_k < 1:
            raise UserError(f"svd_k must be at least 1, got {self.svd_k}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1 (or none for all classes), got {self.top_k}")
        if not self.temperature > 0:
            raise UserError(f"temperature must be positive, got {self.temperature}")
        for name in ("warmup", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a fraction of the steps between 0 and 1, got {getattr(self, name)}")

    @classmethod
    def preset(cls, name: str, task: str = "nlg", **changes) -> "Objective":
        """A published form by name ("iclr", "paper-v5"), for "nlg" or "nlu", with any field changed."""
        choose("preset", name, PRESETS)
        for change in changes:
            choose("objective option", change, [field.name for field in fields(cls)])
        return replace(PRESETS[name][choose("task", task, ("nlg", "nlu"))], **changes)

    def weights(self, step: int, total: int) -> tuple[float, float, float]:
        """(lambda1, lambda2, lambda3) in force at the optimiser step `step` of `total`; adaptive lambda1: its maximum."""
        kinds = (self.lambda1_schedule, self.lambda2_schedule, self.lambda3_schedule)
        return tuple(
            weight * (1.0 if kind == "adaptive" else schedules.factor(kind, step, total, self.warmup, self.ramp))
            for weight, kind in zip((self.lambda1, self.lambda2, self.lambda3), kinds, strict=True)
        )


PRESETS = {
    # v1-v5: weights and constant schedules as printed; k = 3 from the code of that time. NLU k and constancy are assumed.
    "paper-v5": {
        "nlg": Objective(1e-4, 3e-4, 1e-4, svd_k=3),
        "nlu": Objective(1e-4, 4e-4, 1e-4, consistency="mse", diversity="covariance", svd_k=5),
    },
    # v6-v8 and ICLR: weights and k as printed; T, top-K and schedules from the published code. NLU T is assumed.
    "iclr": {
        "nlg": Objective(
            0.025,
            0.005,
            0.005,
            temperature=2.0,
            top_k=20,
            svd_k=10,
            svd_norm="frobenius",
            lambda1_schedule="cosine",
            lambda2_schedule="two_phase",
            lambda3_schedule="two_phase",
        ),
        "nlu": Objective(0.15, 0.03, 0.03, temperature=2.0, diversity="covariance", svd_k=5),
    },
}


def counted(labels: Tensor) -> Tensor:
    """(B, T−1) mask of the positions whose next token is trained. labels: (B, T)."""
    return labels[:, 1:] != IGNORED


def dense_objective(
    logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    objective: Objective,
    lambdas: tuple[float, float, float],
    *,
    num_items: Tensor | float | None = None,
    spectrum_scale: float = 1.0,
    all_terms: bool = False,
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The loss of rows already selected and shifted, from their logits, and its terms.

    logits, teacher_logits: (N, V); targets: (N,); lambdas: the weights now in force; num_items: rows of the whole step
    (default N); spectrum_scale: 1/(micro-batches in the step × processes). Returns (loss, terms): terms are unweighted;
    task, consistency and diversity are sums over the rows / num_items; a term whose weight is 0 is None unless all_terms.
    loss = task + λ1·consistency + λ2·diversity + λ3·spectrum_scale·spectrum.
    """
    rows = len(targets)
    items = rows if num_items is None else num_items
    items = items.clamp(min=1) if isinstance(items, Tensor) else max(items, 1)
    lambda1, lambda2, lambda3 = lambdas
    working = regularizers.working(logits)

    def per_item(mean: Tensor) -> Tensor:
        """From the mean over these rows to their sum over the rows of the step."""
        return mean * rows / items

    terms: dict[str, Tensor | None] = dict.fromkeys(TERMS)
    terms["task"] = cross_entropy(working, targets, reduction="sum") / items if rows else working.sum() * 0.0
    if lambda1 > 0 or (all_terms and teacher_logits is not None):
        if objective.consistency == "kl":
            terms["consistency"] = per_item(regularizers.consistency_kl(logits, teacher_logits, objective.temperature))
        else:
            terms["consistency"] = per_item(regularizers.consistency_mse(logits, teacher_logits))
    if lambda2 > 0 or all_terms:
        if objective.diversity == "entropy":
            terms["diversity"] = per_item(regularizers.diversity_entropy(logits, objective.top_k))
        else:
            terms["diversity"] = per_item(regularizers.diversity_covariance(logits))
    if lambda3 > 0 or all_terms:
        terms["spectrum"] = regularizers.svd_ratio(logits, objective.svd_k, objective.svd_norm)
    scales = {"task": 1.0, "consistency": lambda1, "diversity": lambda2, "spectrum": lambda3 * spectrum_scale}
    loss = sum(scales[name] * term for name, term in terms.items() if term is not None and scales[name] > 0)
    return loss, terms


class ObjectiveModel(nn.Module):
    """An adapted model whose forward returns the whole objective as its loss, so that any trainer can drive it.

    DistributedDataParallel, DeepSpeed and FSDP see one forward and one backward; the teacher runs inside. `student` is the
    model from `attach`. `begin_step` is called once an optimiser step (ObjectiveCallback does it).

    all_terms: compute the terms whose weight is 0 too. gradient_norms: keep each term's gradient on the steps that
    `begin_step` marks as logged (costs a backward a term).
    """

    accepts_loss_kwargs = True  # Trainer then passes num_items_in_batch and does not divide by the accumulation
    loss_type = "ForCausalLM"  # Trainer then counts labels[:, 1:], the rows that `counted` counts

    def __init__(
        self, student: nn.Module, objective: Objective, *, all_terms: bool = False, gradient_norms: bool = False
    ):
        super().__init__()
        vocabulary = student.get_output_embeddings().weight.shape[0]
        if objective.top_k is not None and objective.top_k > vocabulary:
            raise UserError(f"top_k {objective.top_k} is above the vocabulary of {vocabulary}; lower top_k")
        if objective.lambda1 > 0 and initial_copy(student) is None:
            raise UserError(
                "lambda1 > 0 needs the teacher and this model keeps no initial copy; attach it with keep_initial=True"
            )
        self.student, self.objective = student, objective
        self.all_terms, self.gradient_norms = all_terms, gradient_norms
        self.begin_step(0, 1)

    @property
    def config(self):
        return self.student.config

    def gradient_checkpointing_enable(self, **options) -> None:
        self.student.gradient_checkpointing_enable(**options)

    def begin_step(
        self, step: int, total: int, micro_batches: int = 1, ranks: int = 1, keep_gradients: bool = False
    ) -> None:
        """Set the weights of this optimiser step and forget the sums of the last one."""
        self.lambdas = self.objective.weights(step, total)
        self.spectrum_scale = 1.0 / (micro_batches * ranks)
        self.keep_gradients = keep_gradients and self.gradient_norms
        self.sums: dict[str, Tensor] = {}  # over this process's micro-batches; spectrum and lambda1 already averaged
        self.rows: Tensor | int = 0  # counted tokens, likewise
        self.gradients: dict[str, list[Tensor]] = {}

    def forward(self, input_ids=None, attention_mask=None, labels=None, num_items_in_batch=None, **inputs):
        """As the student's, with `loss` the objective. input_ids, attention_mask, labels: (B, T)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        if labels is None:
            return self.student(**inputs)
        inputs["use_cache"] = False
        mask = counted(labels)
        teacher_logits = None
        has_teacher = initial_copy(self.student) is not None
        if self.lambdas[0] > 0 or (self.all_terms and has_teacher):
            with teacher(self.student):
                teacher_logits = self.student(**inputs).logits[:, :-1][mask]  # (N, V)
        output = self.student(**inputs)
        lambdas = self._lambdas(teacher_logits)
        output.loss, terms = dense_objective(
            output.logits[:, :-1][mask],
            teacher_logits,
            labels[:, 1:][mask],
            self.objective,
            lambdas,
            num_items=num_items_in_batch,
            spectrum_scale=self.spectrum_scale,
            all_terms=self.all_terms,
        )
        if self.training:
            self.rows = self.rows + mask.sum()
            self._record(terms, lambdas[0], output.loss)
        return output

    def _lambdas(self, teacher_logits: Tensor | None) -> tuple:
        if self.objective.lambda1_schedule != "adaptive" or teacher_logits is None or len(teacher_logits) == 0:
            return self.lambdas
        highest, *others = self.lambdas
        lowest = self.objective.lambda1_min if self.objective.lambda1_min is not None else 0.1 * highest
        certain = schedules.confidence(teacher_logits, self.objective.temperature)
        return (float(lowest + (highest - lowest) * certain), *others)

    def _record(self, terms: dict, lambda1: float, loss: Tensor) -> None:
        values = {name: term.detach() for name, term in terms.items() if term is not None}
        values["loss"] = loss.detach().clone()  # Trainer scales the loss in place
        values["lambda1"] = torch.full_like(values["loss"], lambda1) * self.spectrum_scale
        if "spectrum" in values:
            values["spectrum"] = values["spectrum"] * self.spectrum_scale
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
        if self.keep_gradients:
            self._keep_gradients(terms)

    def _keep_gradients(self, terms: dict) -> None:
        """Add each unweighted term's gradient to its sum over the step's micro-batches."""
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        for name, term in terms.items():
            if term is None or not term.requires_grad:
                continue
            scaled = term * self.spectrum_scale if name == "spectrum" else term
            pieces = torch.autograd.grad(scaled, trained, retain_graph=True, allow_unused=True)
            pieces = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, pieces, strict=True)]
            kept = self.gradients.setdefault(name, [torch.zeros_like(p) for p in trained])
            for total, piece in zip(kept, pieces, strict=True):
                total += piece
