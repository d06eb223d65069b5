"""Labelled texts and pairs of texts → token ids and padded batches, for classifiers."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from ..errors import UserError
from ..files import digest
from .glue import Examples
from .instruction import encode_text
from .padding import padding_id
from .samples import Samples
from .special_tokens import count, report_line, special_tokens

logger = logging.getLogger(__name__)


def encode_examples(
    tokenizer, examples: Examples, max_length: int, special_tokens_in_text: str = "text"
) -> tuple[Samples, dict]:
    """(samples, report {"kept", "truncated", "hash"}) of examples that all have a label.

    A sample holds the tokenizer's output for the text or the pair, cut to max_length (in a pair, the longer text first), and
    "labels", a class or a number. `hash` is that of ids and labels in their order: the identity of the data.
    """
    missing = [key for key, label in zip(examples.ids, examples.labels, strict=True) if label is None]
    if missing:
        raise UserError(
            f"{examples.source}: row {missing[0]} has no label; a test split without labels cannot be used here"
        )
    encoded = encode_texts(tokenizer, examples.texts, max_length, special_tokens_in_text)
    truncated = encoded.pop("truncated")
    samples = Samples.of(encoded | {"labels": examples.labels})
    report = {"kept": len(samples), "truncated": truncated}
    return samples, report | {"hash": digest([encoded["input_ids"], examples.labels])}


def encode_texts(
    tokenizer, texts: Sequence[tuple[str, ...]], max_length: int, special_tokens_in_text: str = "text"
) -> dict:
    """{"input_ids", perhaps "token_type_ids": one list per text or pair; "truncated": how many were cut to max_length}.

    special_tokens_in_text: treat "[SEP]" and similar tokens in a text as "text" or as "control" tokens.
    """
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=False, verbose=False)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    if max(lengths, default=0) > max_length:
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    encoded = {name: list(encoded[name]) for name in encoded if name in ("input_ids", "token_type_ids")}
    if special_tokens_in_text == "text":
        for row, made in _as_letters(tokenizer, texts, encoded["input_ids"], max_length):
            lengths[row] = made.pop("length")
            for name, values in encoded.items():
                values[row] = made[name]
    truncated = sum(length > max_length for length in lengths)
    if truncated:
        logger.warning("%d of %d texts are cut to %d tokens", truncated, len(texts), max_length)
    return encoded | {"truncated": truncated}


def _as_letters(
    tokenizer, texts: Sequence[tuple[str, ...]], encoded: Sequence[list[int]], max_length: int
) -> Iterator[tuple[int, dict]]:
    """(row, the tokenizer's output for it plus its "length" before it was cut) for each row with special tokens in its
    texts.

    The texts are encoded separately and replace two placeholder letters in the tokenizer's frame for a text or a pair.
    `encoded`: the ids of each row, which have more control tokens than expected if the tokenizer makes one from a text that
    does not name it.
    """
    specials, found, frame = special_tokens(tokenizer), Counter(), None
    for row, parts in enumerate(texts):
        frame = frame or tokenizer(*("a" for _ in parts))
        names = [name for text in parts for name in specials.found(text)]
        if not names and count(specials, encoded[row]) <= count(specials, frame["input_ids"]):
            continue
        found.update(names)
        bodies = [encode_text(tokenizer, None, text, add_special_tokens=False) for text in parts]
        whose = frame.sequence_ids()
        around = whose.count(None)
        length = around + sum(map(len, bodies))
        if length > max_length:
            bodies = [body[:kept] for body, kept in zip(bodies, _kept(bodies, max_length - around), strict=True)]
        made = {"length": length}
        for name in ("input_ids", "token_type_ids"):
            made[name] = []
            for place, (owner, value) in enumerate(zip(whose, frame.get(name, whose), strict=True)):
                if owner is None:
                    made[name].append(value)
                elif place == whose.index(owner):
                    made[name] += bodies[owner] if name == "input_ids" else [value] * len(bodies[owner])
        yield row, made
    if found:
        logger.warning("%s", report_line(found, None))


def _kept(bodies: list[list[int]], room: int) -> list[int]:
    """How many tokens of a text or pair fit in `room` tokens, cut as by `longest_first` in the tokenizers library."""
    room = max(room, 0)
    if len(bodies) == 1:
        return [room]
    short, long = sorted(map(len, bodies))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return [long, short] if len(bodies[0]) > len(bodies[1]) else [short, long]


class PadPairs:
    """Pad on the right to the longest sample of the batch: input_ids, attention_mask and, if the tokenizer gives them,
    token_type_ids, each (N, T), and labels (N,). The mask comes from the lengths, and alone defines the padding."""

    def __init__(self, tokenizer, regression: bool = False):
        self.pad = padding_id(tokenizer)
        self.kind = torch.float32 if regression else torch.long

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        width = max(len(sample["input_ids"]) for sample in samples)
        ids = torch.full((len(samples), width), self.pad, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}
        if "token_type_ids" in samples[0]:
            batch["token_type_ids"] = torch.zeros_like(ids)
        for row, sample in enumerate(samples):
            length = len(sample["input_ids"])
            ids[row, :length] = torch.tensor(sample["input_ids"])
            batch["attention_mask"][row, :length] = 1
            if "token_type_ids" in batch:
                batch["token_type_ids"][row, :length] = torch.tensor(sample["token_type_ids"])
        if "labels" in samples[0]:
            batch["labels"] = torch.tensor([sample["labels"] for sample in samples], dtype=self.kind)
        return batch
