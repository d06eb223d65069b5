"""Treat special tokens in texts as text: "</s>" or "<|im_end|>" in a question or an answer never starts or ends anything.

A text that holds the name of a control token is cut inside that name (CUT marks the place) before a template writes it. The
template's own control tokens then stay control tokens, and those in the text are encoded as letters. A text without such a
name is never changed. A template records whether this is done; templates recorded by earlier versions do not do it.
"""

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from ..errors import UserError
from .templates import CHAT, Template, turns

CUT = (
    "\ufdd0\ufdd1"  # two code points that Unicode reserves for such use; they survive if a text holds them (see `cut`)
)
REMEDY = "use --special_tokens_in_text control"


class SpecialTokens(NamedTuple):
    """The control tokens of a tokenizer.

    pattern: finds their names, the longest first; None if there are none. ids: the ids that no text may become (without the
    unknown token, which any unknown character becomes).
    """

    pattern: re.Pattern | None
    ids: frozenset[int]

    def found(self, text: str) -> list[str]:
        """The names that occur in a text, in order."""
        return self.pattern.findall(text) if self.pattern else []

    def cut(self, text: str) -> str:
        """`text` with CUT inside every name, including overlapping ones; CUT in the text itself is restored when CUT is
        removed."""
        pieces, start = [], 0
        text = text.replace(CUT, CUT[0] + CUT + CUT[1])
        while self.pattern and (match := self.pattern.search(text, start)):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        return CUT.join([*pieces, text[start:]])


def special_tokens(tokenizer, template: Template | None = None) -> SpecialTokens:
    """The control tokens of a tokenizer, with the token that ends an answer and those that a chat template writes around
    turns, whether they are special or not.

    Tokens that a template writes only inside an answer (<think>, <tool_call>) are the model's own text, and stay in the
    training data.
    """
    if not hasattr(tokenizer, "added_tokens_decoder"):  # for a prompt, a plain function from text to ids is enough
        return SpecialTokens(None, frozenset())
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    return _special_tokens(tokenizer, template, size, tuple(tokenizer.all_special_tokens))


@lru_cache(maxsize=8)
def _special_tokens(tokenizer, template: Template | None, _size: int, named: tuple[str, ...]) -> SpecialTokens:
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    end = template.end if template else None
    written = _around_turns(tokenizer, template) if template and template.name == CHAT else ""
    names = {
        name for name, special in added.items() if special or name == end or (name in written and not name.isalnum())
    }
    names = {name for name in names | {*named} if name.strip("\u2581 \t\r\n")}  # Gemma's blanks are tokens too
    ids = {tokenizer.convert_tokens_to_ids(name) for name in names}
    # In GPT-2's vocabulary these are one token, and no text is unknown.
    if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        ids -= {tokenizer.unk_token_id}
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return SpecialTokens(re.compile(pattern) if names else None, frozenset(ids))


def _around_turns(tokenizer, template: Template) -> str:
    """A short conversation up to its next answer, written by the chat template; the template's source if it rejects that."""
    messages = [{"role": role, "content": "a"} for role in ("system", "user", "assistant", "user")]
    for taken in (messages, messages[1:]):  # some reject a system message
        with suppress(UserError):
            return "".join(turns(template, tokenizer, taken))
    return template.prompt


def is_text(template: Template | None) -> bool:
    """Return True if special tokens in texts are text rather than control tokens."""
    return template is None or template.special_tokens_in_text == "text"


def cut_messages(specials: SpecialTokens, messages: list[dict]) -> list[dict]:
    """The messages with their contents cut; the same list if there is nothing to cut."""
    contents = [specials.cut(message["content"]) for message in messages]
    if not any(CUT in content for content in contents):
        return messages
    return [message | {"content": content} for message, content in zip(messages, contents, strict=True)]


def report_line(found: Counter, template: Template | None) -> str:
    """One line with the number of special tokens and how they are treated."""
    names = ", ".join(f"{name} {count}" for name, count in found.most_common(5))
    more = ", ..." if len(found) > 5 else ""
    taken = "encoded as text" if is_text(template) else "control tokens, as --special_tokens_in_text control says"
    return f"{found.total()} special tokens occur in the texts ({names}{more}); they are {taken}"


def count(specials: SpecialTokens, ids: Iterable[int]) -> int:
    """Number of control tokens in `ids`."""
    return sum(token in specials.ids for token in ids)


def check(specials: SpecialTokens, ids: list[int], expected: int) -> None:
    """Raise UserError unless `ids` hold as many control tokens as the template itself wrote."""
    if count(specials, ids) != expected:
        raise UserError(f"this tokenizer turns text into a control token however it is cut; {REMEDY}")
