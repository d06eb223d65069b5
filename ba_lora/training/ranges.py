"""The numbers that an option of a run accepts."""

import math

from ..errors import UserError

# (option, test, the accepted values in words): any other number would train nothing, or not what it says.
NUMBERS = (
    *((name, lambda value: value >= 1, "at least 1") for name in ("rank", "max_length", "effective_batch_size")),
    *((name, lambda value: value >= 1, "at least 1") for name in ("micro_batch_size", "logging_steps")),
    *((name, lambda value: value >= 1, "at least 1") for name in ("features_examples", "eval_limit")),
    *((name, lambda value: value >= 1, "at least 1") for name in ("validation_limit", "validation_steps", "patience")),
    ("validation_share", lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ("teacher_cache_entries", lambda value: value >= 2, "at least 2"),
    ("max_steps", lambda value: value >= 1 or value == -1, "at least 1, or -1 to train for --epochs"),
    ("save_steps", lambda value: value >= 0, "at least 0"),
    ("seed", lambda value: 0 <= value < 2**32, "at least 0 and below 2^32"),
    *(
        (name, lambda value: 0 < value < math.inf, "positive and finite")
        for name in ("learning_rate", "epochs", "alpha")
    ),
    *(
        (name, lambda value: 0 <= value < math.inf, "at least 0 and finite")
        for name in ("weight_decay", "max_grad_norm")
    ),
    ("teacher_share", lambda value: 0 < value <= 1, "above 0 and at most 1"),
    *((name, lambda value: 0 <= value < 1, "at least 0 and below 1") for name in ("dropout", "warmup_ratio")),
)


def check_ranges(arguments) -> None:
    """Raise UserError for the first option of `arguments` (TrainArguments) whose number is outside its range."""
    for name, is_good, wanted in NUMBERS:
        value = getattr(arguments, name)
        if value is not None and not is_good(value):
            raise UserError(f"--{name} must be {wanted}, got {value}")
