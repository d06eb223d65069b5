"""The padding id of a batch, and the position at which each text ends."""

import torch
from torch import Tensor


def last_real(mask: Tensor) -> Tensor:
    """The position of the last 1 in each row, whichever side is padded. mask: (N, T); returns (N,)."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device) * (mask != 0)  # (N, T), 0 at padding
    return places.argmax(dim=1)


def padding_id(tokenizer) -> int:
    """The id for positions without text: the tokenizer's padding, else its end of sequence, else 0."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(number for number in known if number is not None)
