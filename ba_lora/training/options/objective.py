"""The regularizers and their teacher."""

from dataclasses import dataclass

from ..combinations import CACHE_FORMS
from .option import option


@dataclass
class ObjectiveOptions:
    """The terms beside the task loss."""

    preset: str = option("iclr", "weights and forms of the regularizers: iclr or paper-v5", group="objective")
    regularizers: str = option(
        "auto", "auto = on for ba-lora, off for others", choices=("auto", "on", "off"), group="objective"
    )
    lambda1: float | None = option(None, "weight of consistency; none = the preset's", group="objective")
    lambda2: float | None = option(None, "weight of diversity; none = the preset's", group="objective")
    lambda3: float | None = option(None, "weight of the spectrum; none = the preset's", group="objective")
    consistency: str | None = option(
        None, "kl or mse (v5's classifiers); mse needs the logits; none = the preset's", group="objective"
    )
    temperature: float | None = option(None, "temperature of consistency; none = the preset's", group="objective")
    diversity: str | None = option(
        None,
        "entropy (generation) or covariance (classification; needs the logits, and V × V numbers for a vocabulary of V); "
        "none = the preset's",
        group="objective",
    )
    top_k: int | None = option(None, "number of classes in diversity; 0 = all; none = the preset's", group="objective")
    svd_k: int | None = option(None, "number of leading singular values; none = the preset's", group="objective")
    svd_norm: str | None = option(None, "nuclear or frobenius; none = the preset's", group="objective")
    lambda1_schedule: str | None = option(
        None,
        "constant, cosine, linear_warmup, quadratic_warmup, two_phase, adaptive; none = the preset's",
        group="objective",
    )
    lambda2_schedule: str | None = option(None, "same choices as lambda1_schedule, except adaptive", group="objective")
    lambda3_schedule: str | None = option(None, "same choices as lambda1_schedule, except adaptive", group="objective")
    warmup: float | None = option(
        None, "warm-up of a lambda schedule, fraction of the steps (published code: 0.2)", group="objective"
    )
    ramp: float | None = option(
        None, "ramp of two_phase, fraction of the steps (published code: 0.05)", group="objective"
    )
    lambda1_min: float | None = option(None, "lowest lambda1 of adaptive; none = lambda1 / 10", group="objective")
    teacher_cache: str | None = option(
        None,
        "folder for the teacher's contribution to each trained row, computed once per model, data and temperature; later runs "
        "read it and run no teacher; about 16 KB per trained token for a 7B model (--dry_run prints it)",
        group="objective",
    )
    teacher_cache_dtype: str = option(
        "float32",
        "precision of the cache; bfloat16 halves it and moved the update by 3e-4 of its norm (embedded model, 20 steps); "
        "a bfloat16 model loses nothing",
        choices=("float32", "bfloat16"),
        group="objective",
    )
    teacher_cache_form: str = option(
        "exact",
        "exact, or sketch: some tokens of each row, about 400 bytes per trained token for any model; the gradient of consistency "
        "then has a noise, whose mean over the draws is 0 (docs/objective.md)",
        choices=CACHE_FORMS,
        group="objective",
    )
    teacher_cache_entries: int = option(
        96, "tokens that a sketch keeps of each row, 4 bytes each; the noise falls with its root", group="objective"
    )
    teacher_share: float = option(
        1.0,
        "share of each step's sequences on which the teacher runs, drawn by the seed; their rows weigh 1/share, so that the "
        "gradient of consistency is right on average, and noisier (docs/objective.md)",
        group="objective",
    )
    log_all_terms: bool = option(False, "also compute and log terms whose weight is 0", group="objective")
    log_gradient_norms: bool = option(False, "log each term's gradient norm relative to the task's", group="objective")
