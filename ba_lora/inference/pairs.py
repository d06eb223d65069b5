"""Pairs of a context and a continuation, as token ids, and the batches in which their log-likelihoods are computed.

The tokens are cut as lm-evaluation-harness 0.4.13 cuts them for a causal model: white space at the end of the context moves to the
continuation, both are encoded together, and the continuation begins where the tokens of the context alone would end. Texts are
encoded as they stand: no template, and the name of a control token is that token.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ..errors import UserError


class Pair(NamedTuple):
    """A continuation and the text before it; place: the name of the pair in messages."""

    context: str
    continuation: str
    place: str


class Likelihood(NamedTuple):
    """logprob: sum of the natural log-probabilities of the continuation's tokens. bytes: of the continuation in UTF-8."""

    logprob: float
    tokens: int
    bytes: int


class Encoded(NamedTuple):
    """A pair as token ids: `start` is the place of the continuation's first token, at least 1."""

    ids: tuple[int, ...]
    start: int


def prefix_id(tokenizer) -> int:
    """The token before a continuation without context: the beginning of a sequence, else its end. UserError without either."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UserError(
        "the tokenizer has neither a beginning-of-sequence nor an end-of-sequence token, so a text has no first probability; set "
        "tokenizer.bos_token"
    )


def encode_pair(tokenizer, pair: Pair) -> Encoded:
    """The token ids of a pair. Without a context the prefix token stands before the continuation, unless it begins with that token.

    Raises UserError naming the pair if its continuation is empty or has no token of its own.
    """
    context, continuation, place = pair
    if not continuation:
        raise UserError(f"{place}: the continuation is empty, so it has no probability; give a text")
    if not context.strip():
        context, continuation = "", context + continuation
        first, ids = prefix_id(tokenizer), ids_of(tokenizer, continuation, add_special_tokens=False)
        encoded = Encoded(tuple(ids if ids[:1] == [first] else [first, *ids]), 1)
    else:
        blank = context[len(context.rstrip()) :]
        context, continuation = context.rstrip(), blank + continuation
        options = _options(tokenizer, context)
        encoded = Encoded(
            tuple(ids_of(tokenizer, context + continuation, **options)), len(ids_of(tokenizer, context, **options))
        )
    if not 0 < encoded.start < len(encoded.ids):
        raise UserError(f"{place}: the continuation {pair.continuation[:40]!r} adds no token; give a longer text")
    return encoded


def ids_of(tokenizer, text: str, **options) -> list[int]:
    """The token ids of a text. transformers does not warn of one longer than the model, which `check_length` refuses in one line."""
    return list(tokenizer(text, verbose=False, **options)["input_ids"])


def _options(tokenizer, text: str) -> dict:
    """A text that begins with the name of the prefix token gets no second one."""
    name = tokenizer.decode([prefix_id(tokenizer)])
    return {"add_special_tokens": False} if name and text.startswith(name) else {}


def check_length(encoded: Encoded, pair: Pair, positions: int | None) -> None:
    """Raise UserError naming the pair if it does not fit into the model's positions. The last token is not an input."""
    if positions is not None and len(encoded.ids) - 1 > positions:
        raise UserError(
            f"{pair.place}: context and continuation have {len(encoded.ids)} tokens, and the model has {positions} positions; "
            "shorten the text or take another model"
        )


def batches(
    encoded: Sequence[Encoded], batch_size: int, width: int, limit: int, done: Collection[int] = ()
) -> list[list[int]]:
    """The numbers of the pairs, longest first, in batches of at most `batch_size` rows and `limit` numbers in the logits.

    width: logits of a token. Equal pairs are computed once: each batch names the first of them. The batches do not depend on what
    is `done`: one is left out only if every pair of it is, so that a row has the same neighbours, and the same rounding, after an
    interruption.
    """
    twins: dict[Encoded, list[int]] = {}
    for number, each in enumerate(encoded):
        twins.setdefault(each, []).append(number)
    order = sorted(twins, key=lambda each: (-len(each.ids), each))
    made: list[list[Encoded]] = []
    for each in order:
        rows = made[-1] if made else None
        if rows is None or len(rows) == batch_size or (len(rows) + 1) * len(rows[0].ids) * width > limit:
            made.append([])
        made[-1].append(each)
    finished = set(done)
    return [
        [twins[each][0] for each in rows]
        for rows in made
        if any(number not in finished for each in rows for number in twins[each])
    ]


def twins_of(encoded: Sequence[Encoded]) -> dict[int, list[int]]:
    """The first number of each group of equal pairs → all numbers of the group."""
    first: dict[Encoded, int] = {}
    groups: dict[int, list[int]] = {}
    for number, each in enumerate(encoded):
        groups.setdefault(first.setdefault(each, number), []).append(number)
    return groups
