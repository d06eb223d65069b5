"""The table of the regularizers, their settings for a run, and the published presets."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from ..errors import UserError, choose
from . import schedules


class Form(NamedTuple):
    """One way to compute a regularizer."""

    unit: str  # of the unweighted value
    text: str  # for the model card; {name} is the value of a field of `Objective`, {classes} describes top_k
    from_hidden: bool  # chunked.py computes it from the hidden states; otherwise training keeps the logits


class Regularizer(NamedTuple):
    """A term beside the task loss. `weight`, `schedule` and `option` are fields of `Objective`."""

    name: str  # of its value, in the terms of the loss and in metrics.jsonl
    symbol: str  # of its weight
    weight: str
    schedule: str
    option: str  # chooses the form
    forms: dict[str, Form]
    per_row: bool  # generation: a mean over all rows of the optimiser step, not a statistic of each micro-batch
    per_sample: bool  # the same for classification
    uses_teacher: bool = False


# To add one: its equation in regularizers.py, its row and fields here, `FORMS` of dense.py and chunked.py, options in training/options/.
REGULARIZERS = (
    Regularizer(
        *("consistency", "λ1", "lambda1", "lambda1_schedule", "consistency"),
        {
            "kl": Form("T²·KL, nats", "T²·KL to the pre-trained model at T = {temperature:g}", from_hidden=True),
            "mse": Form("squared error", "squared difference of logits", from_hidden=False),
        },
        per_row=True,
        per_sample=True,
        uses_teacher=True,
    ),
    Regularizer(
        *("diversity", "λ2", "lambda2", "lambda2_schedule", "diversity"),
        {
            "entropy": Form("−entropy, nats", "negative entropy over {classes}", from_hidden=True),
            "covariance": Form("squared covariances", "off-diagonal covariance of the logits", from_hidden=False),
        },
        per_row=True,
        per_sample=False,
    ),
    Regularizer(
        *("spectrum", "λ3", "lambda3", "lambda3_schedule", "svd_norm"),
        {
            norm: Form(
                f"−Σσ / {label}",
                f"share of the leading {{svd_k}} singular values of the logits ({norm} norm)",
                from_hidden=True,
            )
            for norm, label in (("nuclear", "nuclear norm"), ("frobenius", "Frobenius norm"))
        },
        per_row=False,
        per_sample=False,
    ),
)
TERMS = ("task", *(each.name for each in REGULARIZERS))
WEIGHTS = tuple(each.weight for each in REGULARIZERS)
# Kinds of the values in a line of metrics.jsonl; see `files.check_kinds`.
METRICS = {"step": "a number"} | {f"{name}?": "a number" for name in ("loss", *TERMS, *WEIGHTS, "lr")}
METRICS |= {f"validation_{name}?": "a number" for name in (*TERMS, "accuracy")}


def of_training(rows: Iterable[dict]) -> list[dict]:
    """The rows of metrics.jsonl that are of training steps, and not of a look at held-out rows."""
    return [row for row in rows if "validation_task" not in row]


def of_validation(rows: Iterable[dict]) -> list[dict]:
    """The rows of metrics.jsonl that `of_training` leaves out."""
    return [row for row in rows if "validation_task" in row]


@dataclass(frozen=True)
class Objective:
    """The regularizers' forms, weights and schedules. `Objective.preset(name)` gives the published ones."""

    lambda1: float = 0.0  # weight of consistency
    lambda2: float = 0.0  # weight of diversity
    lambda3: float = 0.0  # weight of the spectrum
    consistency: str = "kl"  # kl | mse
    temperature: float = 1.0  # for consistency "kl"; > 0
    diversity: str = "entropy"  # entropy | covariance
    top_k: int | None = None  # number of classes in the entropy; None is all of them
    svd_k: int = 10  # leading singular values
    svd_norm: str = "nuclear"  # nuclear | frobenius
    lambda1_schedule: str = "constant"  # any of schedules.SCHEDULES, or "adaptive"
    lambda2_schedule: str = "constant"
    lambda3_schedule: str = "constant"
    warmup: float = 0.2  # fraction of the steps; see schedules.py
    ramp: float = 0.05  # fraction of the steps; two_phase only
    lambda1_min: float | None = None  # for the adaptive schedule; None is lambda1 / 10

    def __post_init__(self):
        for each in REGULARIZERS:
            choose(each.option, getattr(self, each.option), each.forms)
            adaptive = ("adaptive",) if each.uses_teacher else ()
            choose(each.schedule, getattr(self, each.schedule), [*schedules.SCHEDULES, *adaptive])
            weight = getattr(self, each.weight)
            if not weight >= 0 or math.isinf(weight):
                raise UserError(f"{each.weight} must be a number of at least 0, got {weight}")
        if self.svd_k < 1:
            raise UserError(f"svd_k must be at least 1, got {self.svd_k}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1 (or none for all classes), got {self.top_k}")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature must be positive and finite, got {self.temperature}")
        if self.lambda1_min is not None and not 0 <= self.lambda1_min < math.inf:
            raise UserError(f"lambda1_min must be a number of at least 0, got {self.lambda1_min}")
        for name in ("warmup", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a fraction of the steps between 0 and 1, got {getattr(self, name)}")

    @classmethod
    def preset(cls, name: str, task: str = "nlg", **changes: object) -> "Objective":
        """A published preset ("iclr", "paper-v5") for "nlg" or "nlu", with any field changed."""
        choose("preset", name, PRESETS)
        for change in changes:
            choose("objective option", change, [field.name for field in fields(cls)])
        return replace(PRESETS[name][choose("task", task, ("nlg", "nlu"))], **changes)

    def weights(self, step: int, total: int) -> tuple[float, ...]:
        """The weights at the optimiser step `step` of `total`, in the order of REGULARIZERS; an adaptive one at its maximum."""
        kinds = [getattr(self, each.schedule) for each in REGULARIZERS]
        return tuple(
            weight * (1.0 if kind == "adaptive" else schedules.factor(kind, step, total, self.warmup, self.ramp))
            for weight, kind in zip(self.maxima(), kinds, strict=True)
        )

    def maxima(self) -> tuple[float, ...]:
        """The weights without their schedules, in the order of REGULARIZERS."""
        return tuple(getattr(self, weight) for weight in WEIGHTS)

    def uses_teacher(self) -> bool:
        """Return True if a term with a weight compares with the pre-trained model."""
        return any(each.uses_teacher and getattr(self, each.weight) > 0 for each in REGULARIZERS)

    def logits_needed_by(self) -> list[str]:
        """The chosen forms that cannot be computed from the hidden states."""
        forms = [(getattr(self, each.option), each) for each in REGULARIZERS]
        return [form for form, each in forms if not each.forms[form].from_hidden]


PRESETS = {
    # v1-v5: weights and constant schedules as printed; k = 3 from the code of that time. NLU: k and the constant schedule are assumed.
    "paper-v5": {
        "nlg": Objective(1e-4, 3e-4, 1e-4, svd_k=3),
        "nlu": Objective(1e-4, 4e-4, 1e-4, consistency="mse", diversity="covariance", svd_k=5),
    },
    # v6-v8 and ICLR: weights and k as printed; T, top-K and schedules from the published code. NLU: T is assumed.
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
