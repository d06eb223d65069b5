"""Log-likelihoods of continuations with a model that transformers has open: base, adapter or merged alike.

A value depends on the model and on the shape of its batch, which is the same after an interruption (`pairs.batches`). Logits are reduced in
float32, or in float64 if the model is; the sum over tokens is in float64.
"""

import inspect
import math
from collections.abc import Collection, Iterator, Sequence

import torch

from ..errors import RunFailure, UserError
from ..modes import evaluating
from .pairs import Encoded, Likelihood, Pair, batches, check_length, encode_pair, twins_of

LOGITS = 2**27  # numbers in the logits of one batch: 0.5 GB in float32


def positions_of(config) -> int | None:
    """The number of positions of a model; None if its config does not say."""
    names = ("max_position_embeddings", "n_positions", "n_ctx")
    return next((getattr(config, name) for name in names if getattr(config, name, None)), None)


def width_of(config) -> int:
    """The number of logits of a token."""
    return (config.get_text_config() if hasattr(config, "get_text_config") else config).vocab_size


def likelihoods(
    pairs: Sequence[Pair], *, model, tokenizer, batch_size: int = 64, done: Collection[int] = ()
) -> Iterator[tuple[int, Likelihood]]:
    """(number of a pair, its log-likelihood), as they are computed, with transformers.

    done: the numbers of pairs that are known already. Raises UserError naming the pair if a continuation is empty or a pair is longer than the model,
    before anything is computed.
    """
    encoded = [encode_pair(tokenizer, pair) for pair in pairs]
    for each, pair in zip(encoded, pairs, strict=True):
        check_length(each, pair, positions_of(model.config))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return of_ids(pairs, encoded, model=model, pad=pad, batch_size=batch_size, done=done)


def of_ids(
    pairs: Sequence[Pair], encoded: Sequence[Encoded], *, model, pad: int, batch_size: int, done: Collection[int] = ()
) -> Iterator[tuple[int, Likelihood]]:
    """`likelihoods` of pairs that are token ids already."""
    done = frozenset(done)
    groups, width = twins_of(encoded), width_of(model.config)
    with evaluating(model):
        for rows in batches(encoded, batch_size, width, LOGITS, done):
            found = _batch(model, [encoded[number] for number in rows], pad)
            for first, logprob in zip(rows, found, strict=True):
                for number in groups[first]:
                    if number not in done:
                        yield number, likelihood(pairs[number], encoded[number], logprob)


def likelihood(pair: Pair, encoded: Encoded, logprob: float) -> Likelihood:
    """The result of a pair. Raises RunFailure naming the pair if the model gave no finite number."""
    if not math.isfinite(logprob):
        raise RunFailure(
            f"{pair.place}: the model gives the log-probability {logprob}; take --dtype float32, or a model that is whole"
        )
    return Likelihood(logprob, len(encoded.ids) - encoded.start, len(pair.continuation.encode()))


def padded(rows: Sequence[Encoded], pad: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs (B, L), attention mask (B, L)) of the rows without their last tokens, padded on the right."""
    width = max(len(row.ids) for row in rows)
    ids = [[*row.ids[:-1], *[pad] * (width - len(row.ids))] for row in rows]
    mask = [[1] * (len(row.ids) - 1) + [0] * (width - len(row.ids)) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.inference_mode()
def _batch(model, rows: Sequence[Encoded], pad: int) -> list[float]:
    """The log-likelihoods of the rows of one batch, which are padded on the right."""
    device = next(model.parameters()).device
    ids, mask = padded(rows, pad, device)
    unread = min(row.start for row in rows) - 1 if _can_leave_out(model) else 0  # places whose logits no row needs
    fewer = {"logits_to_keep": ids.shape[1] - unread} if unread else {}
    try:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **fewer).logits  # (B, L − unread, V)
    except torch.OutOfMemoryError:
        raise UserError(
            f"the device's memory is too small for {len(rows)} texts of {ids.shape[1]} tokens; lower --batch_size, which is {len(rows)} here"
        ) from None
    sums = []
    for row, own in zip(rows, logits, strict=True):
        kept = own[row.start - 1 - unread : len(row.ids) - 1 - unread]  # before each token of the continuation
        kept = kept if kept.dtype == torch.float64 else kept.float()
        targets = torch.tensor(row.ids[row.start :], device=device)
        chosen = kept.log_softmax(-1).gather(-1, targets[:, None])
        sums.append(chosen.double().sum().item())
    return sums


def _can_leave_out(model) -> bool:
    """Return True if the model can compute the logits of the last places alone; one with code of its own may not."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
