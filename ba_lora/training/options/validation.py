"""Held-out rows, and what they decide."""

from dataclasses import dataclass

from .option import option

KEEP = ("last", "best")


@dataclass
class ValidationOptions:
    """The rows that are never trained on, how often the loss on them is computed, and its use."""

    validation_data: str | None = option(
        None,
        "held-out data, named as for --data; fields, template, max_length and the like apply to it too",
        group="validation",
    )
    validation_split: str = option(
        "validation", "split of a folder or a hub id that validation_data names", group="validation"
    )
    validation_limit: int | None = option(None, "use the first N rows of validation_data", group="validation")
    validation_share: float = option(
        0.0,
        "share of the training rows to hold out instead, drawn by the seed: the same rows for every method; 0 = none",
        group="validation",
    )
    validation_steps: int | None = option(
        None,
        "optimiser steps between two looks at the held-out rows, which the last step always gets; none = a tenth of the run",
        group="validation",
    )
    keep: str = option(
        "last",
        "what is saved: the last step's adapter, or that of the step with the lowest task loss on the held-out rows (best)",
        choices=KEEP,
        group="validation",
    )
    patience: int | None = option(
        None,
        "end the run after N looks at the held-out rows in a row whose task loss was not the lowest so far; none = never",
        group="validation",
    )
