"""Special tokens in texts: what a user or an answer writes as "</s>" or "<|im_end|>" is text, and never ends or begins anything.

A text that holds the name of a control token is cut inside that name (CUT marks the place) before a template writes it, so that
the template's own control tokens stay what they are and the text's are encoded as the letters they are. A text without such a
name is never touched. A template records whether this is done: one that an earlier version recorded did not do it.
"""

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from ..errors import UserError
from .templates import CHAT, Template, turns

CUT = "\ufdd0\ufdd1"  # two code points that Unicode reserves for such use; in a text they stay (see `cut`)
REMEDY = "use --special_tokens_in_text control"


class SpecialTokens(NamedTuple):
    """The control tokens of a tokenizer.

    pattern: finds their names, the longest first; None where there is none. ids: what no text may become (not the unknown
    token, which any strange character becomes).
    """

    pattern: re.Pattern | None
    ids: frozenset[int]

    def found(self, text: str) -> list[str]:
        """The names that stand in a text, in their order."""
        return self.pattern.findall(text) if self.pattern else []

    def cut(self, text: str) -> str:
        """`text` with CUT inside every name, overlapping ones too; what is CUT itself comes back when CUT is taken out."""
        pieces, start = [], 0
        text = text.replace(CUT, CUT[0] + CUT + CUT[1])
        while self.pattern and (match := self.pattern.search(text, start)):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        return CUT.join([*pieces, text[start:]])


def special_tokens(tokenizer, template: Template | None = None) -> SpecialTokens:
    """Those of a tokenizer, with the token that ends an answer and what a chat template writes around turns, special or not.

    What a template only writes inside an answer (<think>, <tool_call>) is the model's own text, and stays in the training data.
    """
    if not hasattr(tokenizer, "added_tokens_decoder"):  # a function from text to ids will do for a prompt
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
    # In GPT-2's vocabulary they are one token, and no text is unknown.
    if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        ids -= {tokenizer.unk_token_id}
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return SpecialTokens(re.compile(pattern) if names else None, frozenset(ids))


def _around_turns(tokenizer, template: Template) -> str:
    """A short conversation up to its next answer, as the chat template writes it; the template's source if it refuses that."""
    messages = [{"role": role, "content": "a"} for role in ("system", "user", "assistant", "user")]
    for taken in (messages, messages[1:]):  # some take no system message
        with suppress(UserError):
            return "".join(turns(template, tokenizer, taken))
    return template.prompt


def is_text(template: Template | None) -> bool:
    """Whether special tokens in texts are text, and not control tokens."""
    return template is None or template.special_tokens_in_text == "text"


def cut_messages(specials: SpecialTokens, messages: list[dict]) -> list[dict]:
    """The messages with their contents cut; the same list where there is nothing to cut."""
    contents = [specials.cut(message["content"]) for message in messages]
    if not any(CUT in content for content in contents):
        return messages
    return [message | {"content": content} for message, content in zip(messages, contents, strict=True)]


def report_line(found: Counter, template: Template | None) -> str:
    """One line that says how many there are and what they are taken for."""
    names = ", ".join(f"{name} {count}" for name, count in found.most_common(5))
    more = ", ..." if len(found) > 5 else ""
    taken = "encoded as text" if is_text(template) else "control tokens, as --special_tokens_in_text control says"
    return f"{found.total()} special tokens stand in the texts ({names}{more}); they are {taken}"


def count(specials: SpecialTokens, ids: Iterable[int]) -> int:
    """How many of `ids` are control tokens."""
    return sum(token in specials.ids for token in ids)


def check(specials: SpecialTokens, ids: list[int], expected: int) -> None:
    """Raise UserError unless `ids` hold as many control tokens as the template itself wrote."""
    if count(specials, ids) != expected:
        raise UserError(f"this tokenizer makes a control token of text however it is cut; {REMEDY}")
