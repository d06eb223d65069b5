"""Samples → a padded batch, and the mask of positions that count."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .instruction import IGNORED


def counted(labels: Tensor) -> Tensor:
    """(B, T−1) mask of the positions whose next token is trained. labels: (B, T)."""
    return labels[:, 1:] != IGNORED


def trained_rows(labels: Tensor) -> Tensor:
    """(N,) numbers, in the flattened batch (B·T), of the positions whose next token is trained. labels: (B, T).

    The host waits for the device once for them; it would wait for each tensor that is indexed by a mask.
    """
    return pad(counted(labels), (0, 1)).flatten().nonzero().squeeze(1)


def padding_of(tokenizer) -> int:
    """The id that fills what no sample does; nothing attends to it."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


class PadRight:
    """Pad on the right to the longest sample of the batch.

    Returns input_ids, attention_mask and labels, each (B, T). The mask comes from the lengths, so a real end-of-sequence
    token is attended to even if it is also the padding token. labels[:, 0] is -100: nothing predicts the first token.

    teacher: a teacher_cache.TeacherCache. The samples then carry their number as "sample", and the batch also gets the
    teacher's contribution to its N trained rows, sample by sample: tensors (N, ...) under names that begin with teacher_.
    """

    def __init__(self, tokenizer, teacher=None):
        self.teacher = teacher
        self.pad = padding_of(tokenizer)

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        width = max(len(sample["input_ids"]) for sample in samples)
        ids = torch.full((len(samples), width), self.pad, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(samples):
            length = len(sample["input_ids"])
            ids[row, :length] = torch.tensor(sample["input_ids"])
            labels[row, :length] = torch.tensor(sample["labels"])
            mask[row, :length] = 1
        labels[:, 0] = IGNORED
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return batch if self.teacher is None else batch | self.teacher.rows([sample["sample"] for sample in samples])
