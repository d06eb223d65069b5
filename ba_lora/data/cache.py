"""Encoded samples, kept on disk by their content: the same texts, tokenizer, template and length are encoded once."""

import os
from pathlib import Path

from datasets import Dataset, disable_progress_bars, load_from_disk

from ..files import atomic_folder, digest, read_json, write_json
from .instruction import Template, encode_pairs

FORMAT = 1  # to be raised when encode_sample changes what it returns


def cache_home() -> Path:
    """$BA_LORA_CACHE, else ba-lora in the user's cache folder."""
    if os.environ.get("BA_LORA_CACHE"):
        return Path(os.environ["BA_LORA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ba-lora"


def load_samples(tokenizer, template: Template, pairs, max_length: int) -> tuple[Dataset, dict]:
    """As `encode_pairs`, from the cache where it can be; the samples are a memory-mapped dataset."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    key = {
        "format": FORMAT,
        "pairs": digest(pairs),
        "tokenizer": digest(backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id],
        "template": vars(template),
        "max_length": max_length,
    }
    folder = cache_home() / "samples" / digest(key)
    if not (folder / "report.json").is_file():
        samples, report = encode_pairs(tokenizer, template, pairs, max_length)
        disable_progress_bars()  # the encoding has its own
        with atomic_folder(folder) as place:
            Dataset.from_list(samples).save_to_disk(place)
            write_json(place / "report.json", report)
    return load_from_disk(folder), read_json(folder / "report.json")
