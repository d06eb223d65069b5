"""Encoded samples, kept on disk by their content: the same texts, tokenizer, template and length are encoded once."""

from datasets import Dataset, disable_progress_bars, load_from_disk
from filelock import FileLock

from ..files import atomic_folder, cache_home, digest, read_json, write_json
from .instruction import encode_conversations
from .templates import Template

FORMAT = 2  # to be raised when encode_conversations changes what it returns


def load_samples(tokenizer, template: Template, conversations, max_length: int) -> tuple[Dataset, dict]:
    """As `encode_conversations`, from the cache where it can be; the samples are a memory-mapped dataset.

    Of several processes that ask for the same, one encodes and the others wait for it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    key = {
        "format": FORMAT,
        "conversations": digest(conversations),
        "tokenizer": digest(backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id],
        "template": vars(template),
        "max_length": max_length,
    }
    folder = cache_home() / "samples" / digest(key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not (folder / "report.json").is_file():
            samples, report = encode_conversations(tokenizer, template, conversations, max_length)
            disable_progress_bars()  # the encoding has its own
            with atomic_folder(folder, ("*.arrow", "*.json")) as place:
                Dataset.from_list(samples).save_to_disk(place)
                write_json(place / "report.json", report)
    return load_from_disk(folder), read_json(folder / "report.json")
