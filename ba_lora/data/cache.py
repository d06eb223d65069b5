"""A disk cache of encoded samples, keyed by content: each combination of texts, tokenizer, template and length is encoded
once."""

import logging
import shutil
from pathlib import Path

from ..files import atomic_folder, cache_home, digest, read_json, write_json
from ..folders import checksums
from ..folders.disk import cached
from .instruction import encode_conversations
from .samples import FILES, Samples
from .templates import Template

logger = logging.getLogger(__name__)

FORMAT = 4  # increase when the result of encode_conversations, or the form of the files, changes


def load_samples(tokenizer, template: Template, conversations, max_length: int) -> tuple[Samples, dict]:
    """Same as `encode_conversations`, from the cache if possible; the samples are memory-mapped.

    If several processes ask for the same samples, one encodes and the others wait for it.
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
    with cached(folder, "the cache of samples"):
        found = _read(folder)
        if found is None:
            samples, report = encode_conversations(tokenizer, template, conversations, max_length)
            with atomic_folder(folder, (*FILES, "*.json")) as place:
                Samples.from_list(samples).save(place)
                write_json(place / "report.json", {"key": folder.name} | report)
                checksums.write(place)
            found = Samples.load(folder), report
    return found


def _read(folder: Path) -> tuple[Samples, dict] | None:
    """The content of the folder; None if it is absent, or if it is damaged or holds other samples (which is logged)."""
    if not folder.exists():
        return None
    try:
        checksums.verify(folder)
        report = read_json(folder / "report.json")
        if report.pop("key", folder.name) != folder.name:
            raise ValueError("it holds other samples")
        return Samples.load(folder), report
    except Exception as error:  # numpy raises many kinds; each means that the folder is unusable
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition("; ")[0]
        logger.warning("the samples in %s are damaged (%s); they are encoded again", folder, reason)
        shutil.rmtree(folder, ignore_errors=True)
        return None
