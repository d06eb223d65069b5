"""What many tests use: a small random model, ragged samples, a batch."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ba_lora.data.collator import PadRight

VOCABULARY = 97


def small_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A random Llama of 2 layers; small enough for hundreds of steps a second."""
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**options | changes)).eval()


def ragged_samples(count: int, seed: int = 0) -> list[dict]:
    """Samples of different lengths: a prompt without labels, then 1 to 9 trained tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    samples = []
    for _ in range(count):
        prompt, response = draw(2, 9), draw(1, 10)
        ids = torch.randint(3, VOCABULARY, (prompt + response,), generator=generator).tolist()
        samples.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return samples


class TokenIds:
    """As much of a tokenizer as PadRight needs."""

    pad_token_id = 0
    eos_token_id = 2


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    return PadRight(TokenIds())(samples)
