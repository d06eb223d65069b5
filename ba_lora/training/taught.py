"""The teacher's part of a micro-batch: of all its sequences, or of those that --teacher_share draws."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..data.packing import is_packed, sample_numbers, without_others


class Taught(NamedTuple):
    """The teacher's values (n, …) for the rows `rows` (n,) of a micro-batch (None: for all), which weigh `weight`.

    values: None if the teacher did not run.
    """

    values: Tensor | None = None
    rows: Tensor | None = None
    weight: float = 1.0

    def beside(self, student: Tensor) -> Tensor | None:
        """The values; an empty tensor if the teacher is in use and no sequence was due. student: its values (N, …)."""
        return student[:0].detach() if self.values is None and self.rows is not None else self.values

    def options(self) -> dict:
        """The rows and their weight, as arguments of an objective."""
        return {"teacher_rows": self.rows, "teacher_weight": self.weight}


def present_in(inputs: dict, labels: Tensor) -> int:
    """The number of sequences in a micro-batch; packed rows hold several each."""
    return int(sample_numbers(inputs["position_ids"]).max()) + 1 if is_packed(inputs) else len(labels)


def owners_of(inputs: dict, labels: Tensor, rows: Tensor) -> Tensor:
    """(N,): the number of the sequence that each of these rows of the flattened batch belongs to. labels: (B, T)."""
    return sample_numbers(inputs["position_ids"]).flatten()[rows] if is_packed(inputs) else rows // labels.shape[1]


def selected(inputs: dict, sequences: Tensor, present: int) -> dict:
    """The inputs of a forward pass of `present` sequences, for these sequences alone. Packed rows stay packed.

    Every tensor with that first dimension is per sample. Columns at the end in which no selected sequence has a token, by
    attention_mask, are left out: nothing attends to them.
    """
    if is_packed(inputs):
        return without_others(inputs, sequences)
    made = {
        name: value.index_select(0, sequences)
        if isinstance(value, Tensor) and value.dim() and len(value) == present
        else value
        for name, value in inputs.items()
    }
    mask = made.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return made
    columns = torch.arange(mask.shape[1], device=mask.device)
    width = int((mask.bool().any(0) * columns).max()) + 1
    cut = {name for name, value in made.items() if isinstance(value, Tensor) and value.shape == mask.shape}
    return {name: value[:, :width] if name in cut else value for name, value in made.items()}
