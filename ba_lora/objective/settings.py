"""The regularizers' forms, weights and schedules, and the published presets."""

import math
from dataclasses import dataclass, fields, replace

from ..errors import UserError, choose
from . import schedules

TERMS = ("task", "consistency", "diversity", "spectrum")


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
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature must be positive and finite, got {self.temperature}")
        if self.lambda1_min is not None and not 0 <= self.lambda1_min < math.inf:
            raise UserError(f"lambda1_min must be a number of at least 0, got {self.lambda1_min}")
        for name in ("warmup", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a fraction of the steps between 0 and 1, got {getattr(self, name)}")

    @classmethod
    def preset(cls, name: str, task: str = "nlg", **changes) -> "Objective":
        """A published preset ("iclr", "paper-v5") for "nlg" or "nlu", with any field changed."""
        choose("preset", name, PRESETS)
        for change in changes:
            choose("objective option", change, [field.name for field in fields(cls)])
        return replace(PRESETS[name][choose("task", task, ("nlg", "nlu"))], **changes)

    def weights(self, step: int, total: int) -> tuple[float, float, float]:
        """(lambda1, lambda2, lambda3) at the optimiser step `step` of `total`; for the adaptive lambda1, its maximum."""
        kinds = (self.lambda1_schedule, self.lambda2_schedule, self.lambda3_schedule)
        return tuple(
            weight * (1.0 if kind == "adaptive" else schedules.factor(kind, step, total, self.warmup, self.ramp))
            for weight, kind in zip((self.lambda1, self.lambda2, self.lambda3), kinds, strict=True)
        )


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
