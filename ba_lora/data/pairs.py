"""Labelled texts and pairs of texts → token ids and padded batches, for classifiers."""

import logging
from collections.abc import Sequence

import torch
from datasets import Dataset

from ..errors import UserError
from ..files import digest
from ..pooling import padding_id
from .glue import Examples

logger = logging.getLogger(__name__)


def encode_examples(tokenizer, examples: Examples, max_length: int) -> tuple[Dataset, dict]:
    """(samples, report {"kept", "truncated", "hash"}) of examples that all have a label.

    A sample is what the tokenizer gives for the text or the pair, cut to max_length (of a pair the longer text first), and
    "labels", a class or a number. `hash` is that of ids and labels in their order: the identity of the data.
    """
    missing = [key for key, label in zip(examples.ids, examples.labels, strict=True) if label is None]
    if missing:
        raise UserError(
            f"{examples.source}: row {missing[0]} has no label; a test split without labels cannot be used here"
        )
    encoded = encode_texts(tokenizer, examples.texts, max_length)
    truncated = encoded.pop("truncated")
    samples = Dataset.from_dict(encoded | {"labels": examples.labels})
    report = {"kept": len(samples), "truncated": truncated}
    return samples, report | {"hash": digest([encoded["input_ids"], examples.labels])}


def encode_texts(tokenizer, texts: Sequence[tuple[str, ...]], max_length: int) -> dict:
    """{"input_ids", perhaps "token_type_ids": a list a text or pair; "truncated": how many were cut to max_length}."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=False, verbose=False)
    truncated = sum(len(ids) > max_length for ids in encoded["input_ids"])
    if truncated:
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        logger.warning("%d of %d texts are cut to %d tokens", truncated, len(texts), max_length)
    return {name: encoded[name] for name in encoded if name in ("input_ids", "token_type_ids")} | {
        "truncated": truncated
    }


class PadPairs:
    """Pad on the right to the longest sample of the batch: input_ids, attention_mask and, where the tokenizer gives them,
    token_type_ids, each (N, T), and labels (N,). The mask comes from the lengths, and alone says what is padding."""

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
