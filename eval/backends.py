"""Prompts in, completions out, in order. A backend is one function; `BACKENDS` names those of this version.

Prompts are token ids as `encode_prompt` gives them, so that no backend can add a second beginning-of-sequence token, and
decoding is greedy: every completion is a function of the model and the prompt alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from ba_lora.data.instruction import decode_after
from ba_lora.errors import UserError, choose

ROUND_TOKENS = (
    64  # new tokens before finished rows leave the batch: one row that never ends then costs its batch little
)


class Completion(NamedTuple):
    """What a model wrote: the text without special tokens, "stop" (it ended) or "length" (it was cut), its token count."""

    text: str
    finish_reason: str
    tokens: int


def generate(
    prompts: Sequence[Sequence[int]],
    *,
    model,
    tokenizer,
    max_new_tokens: int,
    batch_size: int = 64,
    progress: bool = True,
    end: int | None = None,
) -> list[Completion]:
    """Greedy completions of `prompts` (token ids), in their order, with transformers.

    Prompts are sorted by length and padded on the left. Generation runs in rounds: after ROUND_TOKENS new tokens those
    that ended leave, and the rest is batched anew, so a single rambling row does not hold up its whole batch. A completion
    ends at the token `end` (default: the tokenizer's end of sequence), the one that training ends a response with, whatever
    the model's own generation_config says; that token is counted but not part of the text.

    Raises UserError if the tokenizer has no end-of-sequence token, or a prompt fills the model's positions.
    """
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise UserError("the tokenizer has no end-of-sequence token, so no completion can end; set tokenizer.eos_token")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    rooms = [_room(model, prompt, max_new_tokens) for prompt in prompts]
    written: list[list[int]] = [[] for _ in prompts]
    pending = list(range(len(prompts)))
    ended = set()
    with (
        _greedy_config(model, end, pad),
        tqdm(total=len(prompts), desc="generate", unit="prompt", disable=None if progress else True) as bar,
    ):
        while pending:
            remaining = []
            for rows in _batches(pending, [len(prompt) for prompt in prompts], batch_size):
                steps = min(ROUND_TOKENS, *(rooms[row] - len(written[row]) for row in rows))
                inputs = [[*prompts[row], *written[row]] for row in rows]
                for row, tokens in zip(rows, _extend(model, inputs, steps, end, pad), strict=True):
                    written[row] += tokens
                    if tokens[-1] == end:
                        ended.add(row)
                    if row in ended or len(written[row]) >= rooms[row]:
                        bar.update()
                    else:
                        remaining.append(row)
            pending = remaining
    texts = [
        decode_after(tokenizer, prompts[row], tokens[:-1] if row in ended else tokens, skip_special_tokens=True)
        for row, tokens in enumerate(written)
    ]
    return [Completion(text, "stop" if row in ended else "length", len(written[row])) for row, text in enumerate(texts)]


def _room(model, prompt: Sequence[int], max_new_tokens: int) -> int:
    """How many tokens may follow `prompt`: at most `max_new_tokens`, and never past the model's last position."""
    positions = getattr(model.config, "max_position_embeddings", None)
    room = max_new_tokens if positions is None else min(max_new_tokens, positions - len(prompt))
    if not prompt or room < 1:
        raise UserError(
            f"a prompt of {len(prompt)} tokens leaves no room for a completion of up to {max_new_tokens} "
            f"(the model has {positions} positions); use a shorter prompt or another model"
        )
    return room


def _batches(rows: list[int], lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """`rows` in batches of similar length, longest first: too large a batch then fails at once, not at the end."""
    rows = sorted(rows, key=lambda row: lengths[row], reverse=True)
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


@torch.inference_mode()
def _extend(model, inputs: list[list[int]], steps: int, end: int, pad: int) -> list[list[int]]:
    """The next tokens of each row: `steps` of them, or fewer with `end` as the last."""
    width = max(map(len, inputs))
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in inputs], device=device)  # (B, T)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in inputs], device=device)  # (B, T)
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=steps)
    rows = output[:, width:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


@contextmanager
def _greedy_config(model, end: int, pad: int):
    """Give the model (and, under an adapter, the models inside) a plain greedy generation config; restore theirs after.

    A config that is passed to `generate` is completed from the model's own, repetition penalty included; replacing it is
    what makes decoding greedy for every checkpoint. The model is in evaluation mode meanwhile.
    """
    plain = GenerationConfig(do_sample=False, num_beams=1, use_cache=True, eos_token_id=end, pad_token_id=pad)
    owners = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [module.generation_config for module in owners]
    training = [module for module in model.modules() if module.training]
    try:
        for module in owners:
            module.generation_config = plain
        model.eval()
        yield
    finally:
        for module, config in zip(owners, before, strict=True):
            module.generation_config = config
        for module in training:
            module.training = True


BACKENDS: dict[str, Callable[..., list[Completion]]] = {"transformers": generate}
PLANNED = ("vllm", "openai")


def get_backend(name: str) -> Callable[..., list[Completion]]:
    """The generating function called `name`. Raises UserError for one that is unknown or not yet there."""
    choose("backend", name, [*BACKENDS, *PLANNED])
    if name in PLANNED:
        raise UserError(f"backend '{name}' is not available in this version; use --backend transformers")
    return BACKENDS[name]


def backend_version(name: str) -> str:
    """The installed version of the package behind a backend."""
    return version(name)
