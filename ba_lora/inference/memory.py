"""How many tokens of a batch fit in memory: the keys and values of a generation grow with rows × tokens, without a limit of their own.

A token takes 2 × layers × key-value heads × size of a head numbers. With LLaMA-2-7B in 16 bits these are 0.5 MB: a batch of 64
rows whose completions ramble on to 2,248 tokens would need 75 GB.
"""

import logging

import psutil
import torch

from ..errors import RunFailure

logger = logging.getLogger(__name__)

SHARE = (
    0.5  # of the free memory; the rest is for activations, logits and blocks that are copied while they grow (assumed)
)


def bytes_per_token(model) -> int | None:
    """Bytes of the keys and values of one token in one row; None if the model's config does not say."""
    config = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    width = getattr(config, "hidden_size", None)
    if not (layers and heads and width):
        return None
    size = getattr(config, "head_dim", None) or width // heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    return 2 * layers * pairs * size * model.get_input_embeddings().weight.element_size()


def free_bytes(device: torch.device) -> int:
    """Free bytes of a device, with those that torch holds for tensors to come; of a CPU, the machine's free memory."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def tokens_that_fit(model) -> int | None:
    """Rows × tokens (prompt and completion) whose keys and values fit in the free memory; None if their size is not known."""
    each = bytes_per_token(model)
    return each and int(SHARE * free_bytes(next(model.parameters()).device) / each)


class Limit:
    """The number of rows in a batch: at most `batch_size`, and no more than fit in memory."""

    def __init__(self, model, batch_size: int):
        self.model, self.batch_size = model, batch_size
        self.tokens: int | None = None  # known once memory ran out

    def rows(self, width: int) -> int:
        """How many rows of `width` tokens, prompt and completion, go together; at least one."""
        known = [tokens for tokens in (tokens_that_fit(self.model), self.tokens) if tokens is not None]
        return max(1, min([self.batch_size, *(tokens // width for tokens in known)]))

    def halve(self, rows: int, width: int) -> None:
        """Memory ran out with so many rows of `width` tokens: go on with half of them. Raises RunFailure if it was one row."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if rows == 1:
            raise RunFailure(
                f"one row of {width} tokens does not fit in the device's memory; what is written stays. Take a smaller --dtype or "
                "--max_new_tokens, or a device with more memory"
            )
        logger.warning("out of memory with %d rows of %d tokens: going on with %d rows", rows, width, rows // 2)
        self.tokens = rows // 2 * width
