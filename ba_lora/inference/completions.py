"""The completion from a model: the text of its tokens, and where it ends."""

from collections.abc import Sequence
from typing import NamedTuple

from ..data.instruction import decode_after
from ..errors import UserError


class Completion(NamedTuple):
    """A model's output: the text without special tokens, "stop" (it ended) or "length" (it was cut), and its token count."""

    text: str
    finish_reason: str
    tokens: int


def room(prompt: Sequence[int], max_new_tokens: int, positions: int | None) -> int:
    """The number of tokens that may follow `prompt`: at most `max_new_tokens`, and never past the model's last position."""
    left = max_new_tokens if positions is None else min(max_new_tokens, positions - len(prompt))
    if not prompt or left < 1:
        raise UserError(
            f"a prompt of {len(prompt)} tokens leaves no space for a completion of up to {max_new_tokens} "
            f"(the model has {positions} positions); use a shorter prompt or another model"
        )
    return left


def end_ids(tokenizer, end: int, stop: Sequence[str]) -> list[int]:
    """The tokens that end a completion: `end`, and stop strings that are special tokens, which do not appear in the text."""
    if not stop:
        return [end]
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return list(dict.fromkeys([end, *(special[text] for text in stop if text in special)]))


def finish(
    tokenizer, prompt: Sequence[int], tokens: Sequence[int], ends: Sequence[int], stop: Sequence[str]
) -> Completion:
    """The completion in `tokens`: up to a token of `ends` or to the first stop string, which is left out of the text.

    `tokens` may continue after a stop string; tokens are counted up to where the first stop string is complete.
    """
    ended = tokens[-1] in ends
    text = decode_after(tokenizer, prompt, tokens[:-1] if ended else tokens, skip_special_tokens=True)
    if cut_at(text, stop) is None:
        return Completion(text, "stop" if ended else "length", len(tokens))
    needed = len(tokens)
    for count in range(1, len(tokens)):
        shorter = decode_after(tokenizer, prompt, tokens[:count], skip_special_tokens=True)
        if cut_at(shorter, stop) is not None:
            text, needed = shorter, count
            break
    return Completion(text[: cut_at(text, stop)], "stop", needed)


def cut_at(text: str, stop: Sequence[str]) -> int | None:
    """The start of the first stop string in `text`, or None."""
    return min((text.index(string) for string in stop if string in text), default=None)
