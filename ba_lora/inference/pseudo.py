"""Pseudo-log-likelihoods with an encoder: the sum of each token's log-probability while it alone is masked (Salazar et al. 2020,
arXiv 1910.14659). They are no probabilities of a text; only differences between similar texts mean something.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from transformers import AutoModelForMaskedLM

from ..errors import UserError
from ..machine.devices import device
from ..modes import evaluating
from .likelihoods import likelihood, positions_of
from .pairs import Encoded, Likelihood, Pair, ids_of


def open_encoder(name: str, dtype: str = "float32"):
    """A masked language model in evaluation mode. Raises UserError if it cannot be opened, or lacks the head that predicts tokens."""
    from ..models import DTYPES, errors_named, locate

    place = locate(name)
    with errors_named(name, place):
        model, report = AutoModelForMaskedLM.from_pretrained(place, dtype=DTYPES[dtype], output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"model {name} has no weights for {missing[0]} ({len(missing)} tensors are missing): it is an encoder without the head that "
            "predicts masked tokens, so it has no log-likelihood; give a masked language model"
        )
    return model.to(device()).eval()


def encode_masked(tokenizer, pair: Pair) -> Encoded:
    """The ids of a pair with the encoder's tokens around it; the continuation ends before the last of them.

    Raises UserError naming the pair if its continuation is empty or adds no token.
    """
    if not pair.continuation:
        raise UserError(f"{pair.place}: the continuation is empty, so it has no probability; give a text")
    whole = ids_of(tokenizer, pair.context + pair.continuation, add_special_tokens=False)
    before = ids_of(tokenizer, pair.context, add_special_tokens=False) if pair.context else []
    if len(before) >= len(whole):
        raise UserError(f"{pair.place}: the continuation {pair.continuation[:40]!r} adds no token; give a longer text")
    return Encoded((tokenizer.cls_token_id, *whole, tokenizer.sep_token_id), 1 + len(before))


def pseudo_likelihoods(
    pairs: Sequence[Pair], *, model, tokenizer, batch_size: int = 64, done: Collection[int] = ()
) -> Iterator[tuple[int, Likelihood]]:
    """(number of a pair, its pseudo-log-likelihood), in their order; `batch_size` masked copies of one text go together.

    done: the numbers of pairs that are known already. Raises UserError as `encode_masked` does, if the tokenizer has no mask, and if a pair is
    longer than the model.
    """
    if tokenizer.mask_token_id is None or tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise UserError(
            "the tokenizer lacks a mask, cls or sep token, so no token can be masked; give a masked language model"
        )
    encoded, positions = [encode_masked(tokenizer, pair) for pair in pairs], positions_of(model.config)
    for each, pair in zip(encoded, pairs, strict=True):
        if positions is not None and len(each.ids) > positions:
            raise UserError(
                f"{pair.place}: context and continuation have {len(each.ids)} tokens, and the model has {positions} positions; "
                "shorten the text or take another model"
            )
    return _computed(pairs, encoded, model, tokenizer.mask_token_id, batch_size, frozenset(done))


def _computed(pairs, encoded, model, mask, batch_size, done) -> Iterator[tuple[int, Likelihood]]:
    with evaluating(model):
        for number, each in enumerate(encoded):
            if number not in done:
                logprob = sum(_masked(model, each, mask, batch_size))
                without_end = Encoded(each.ids[:-1], each.start)
                yield number, likelihood(pairs[number], without_end, logprob)


@torch.inference_mode()
def _masked(model, row: Encoded, mask: int, batch_size: int) -> list[float]:
    """The log-probability of each token of the continuation while it alone is masked."""
    ids = torch.tensor(row.ids, device=next(model.parameters()).device)
    places, found = torch.arange(row.start, len(row.ids) - 1, device=ids.device), []
    for some in places.split(batch_size):
        inputs = ids.repeat(len(some), 1)
        inputs[torch.arange(len(some)), some] = mask
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits  # (B, L, V)
        kept = logits[torch.arange(len(some)), some]
        kept = kept if kept.dtype == torch.float64 else kept.float()
        found += kept.log_softmax(-1).gather(-1, ids[some][:, None]).double().flatten().tolist()
    return found
