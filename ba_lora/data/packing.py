"""Samples → a batch in which several samples share a row, each with positions from 0 (--packing).

The samples of a micro-batch stay together: they are put into as few rows of --max_length tokens as first-fit finds, or one after
another into a single row. transformers then lets a token attend to its own sample alone, because the batch has position_ids
and no attention_mask. The rows that count are those of the padded batch, in another order.
"""

import torch
from torch import Tensor

from .collator import padding_of
from .instruction import IGNORED


class PackRows:
    """Like PadRight, with several samples in a row: input_ids, position_ids and labels, each (R, T), and no attention_mask.

    The first label of each sample is -100: nothing predicts a first token. Padding, at the end of a row, continues the positions of
    the last sample, whose tokens do not attend to it. width: tokens of a row at most, but at least the longest sample's; None = a
    single row, as flash attention needs it. teacher: as in PadRight; its rows are in the order in which the batch has the samples.
    """

    def __init__(self, tokenizer, teacher=None, *, width: int | None = None):
        self.teacher, self.width, self.pad = teacher, width, padding_of(tokenizer)

    def place(self, samples: list[dict]) -> list[list[int]]:
        """The numbers of the samples in each row of their batch."""
        lengths = [len(sample["input_ids"]) for sample in samples]
        return place(lengths, sum(lengths) if self.width is None else max(self.width, *lengths))

    def __call__(self, samples: list[dict]) -> dict[str, Tensor]:
        rows, lengths = self.place(samples), [len(sample["input_ids"]) for sample in samples]
        width = max(sum(lengths[number] for number in numbers) for numbers in rows)
        ids = torch.full((len(rows), width), self.pad, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        positions = torch.zeros_like(ids)
        for row, numbers in enumerate(rows):
            start = 0
            for number in numbers:
                end = start + lengths[number]
                ids[row, start:end] = torch.tensor(samples[number]["input_ids"])
                labels[row, start:end] = torch.tensor(samples[number]["labels"])
                labels[row, start] = IGNORED
                positions[row, start:] = torch.arange(width - start)  # what follows overwrites its part
                start = end
        batch = {"input_ids": ids, "position_ids": positions, "labels": labels}
        if self.teacher is None:
            return batch
        return batch | self.teacher.rows([samples[number]["sample"] for numbers in rows for number in numbers])


def place(lengths: list[int], width: int) -> list[list[int]]:
    """Rows of sample numbers by first-fit decreasing: the longest sample first, each into the first row with space for it."""
    rows, free = [], []
    for number in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        row = next((row for row, space in enumerate(free) if space >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([]), free.append(width)
        rows[row].append(number)
        free[row] -= lengths[number]
    return rows


def is_packed(inputs: dict) -> bool:
    """Return True if the inputs of a forward pass are packed rows."""
    return inputs.get("attention_mask") is None and inputs.get("position_ids") is not None


def sample_numbers(position_ids: Tensor) -> Tensor:
    """(R, T): the number, from 0, of the sample that each token of packed rows belongs to; padding belongs to the one before it."""
    return (position_ids == 0).flatten().cumsum(0).view_as(position_ids) - 1


def without_others(inputs: dict, samples: Tensor) -> dict:
    """Packed inputs (R, T) with these samples alone, moved together within each row; a row without any is left out."""
    positions = inputs["position_ids"]
    kept = torch.isin(sample_numbers(positions), samples)
    widths = kept.sum(1)
    order = (
        (~kept).to(torch.int8).argsort(dim=1, stable=True)[:, : int(widths.max())]
    )  # kept tokens first, in their order
    rows = widths.nonzero().squeeze(1)
    is_gap = torch.arange(order.shape[1], device=order.device) >= widths[:, None]

    def cut(name: str, value: Tensor) -> Tensor:
        moved = value.gather(1, order)
        if name == "labels":
            moved = moved.masked_fill(is_gap, IGNORED)
        if name == "position_ids":  # the padding continues the last sample
            last = moved.gather(1, (widths - 1).clamp(min=0)[:, None])
            beyond = torch.arange(order.shape[1], device=order.device) - (widths - 1)[:, None]
            moved = torch.where(is_gap, last + beyond, moved)
        return moved.index_select(0, rows)

    shape = positions.shape
    is_row = {name for name, value in inputs.items() if isinstance(value, Tensor) and value.shape == shape}
    return {name: cut(name, value) if name in is_row else value for name, value in inputs.items()}
