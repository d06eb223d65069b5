"""Token ids and masks of conversations, shared by training and evaluation.

A sample consists of exactly the prompt ids that the evaluation sends, then the answer's ids, then the token that ends an
answer; with several turns, this repeats. Context and answers are encoded separately, so no tokenizer merge can cross a
boundary, and the mask comes from their lengths, never from a comparison with the padding token. Special tokens in a message
are text, unless the template says otherwise (`special_tokens`).
"""

import logging
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from ..errors import UserError
from ..files import digest
from .formats import check_conversation, is_untrained, question
from .special_tokens import CUT, SpecialTokens, check, count, cut_messages, is_text, report_line, special_tokens
from .templates import CHAT, Template, end_id, turns

logger = logging.getLogger(__name__)

IGNORED = -100  # label of a position without loss
CHUNK = 1000  # conversations passed to the tokenizer at once
# A private-use character, which no vocabulary merges with a neighbour: text after it is encoded as if inside a text.
ANCHOR = "\ue000"


def encode_prompt(tokenizer, template: Template, prompt: str | list[dict]) -> list[int]:
    """Token ids of a question, or of a conversation that ends with the user, up to where the answer begins.

    They start with one beginning-of-sequence token if the tokenizer adds it; with a chat template, if the template writes
    it.
    """
    if isinstance(prompt, str):
        prompt = question(prompt)
    check_conversation(prompt, "prompt", answered=False)
    _, (parts,) = _encode(tokenizer, template, [prompt])
    return [token for part in parts for token in part]


def encode_text(tokenizer, template: Template | None, text: str, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text outside any template, with the beginning-of-sequence token if the tokenizer adds one.

    template: decides how special tokens in texts are treated; None = as text.
    """
    specials = special_tokens(tokenizer, template)
    if is_text(template):
        return encode_cut(tokenizer, specials.cut(text), specials, add_special_tokens)
    return _plain(tokenizer, text, add_special_tokens)


def encode_cut(tokenizer, text: str, specials: SpecialTokens, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text in which `special_tokens` has cut the names that are not control tokens."""
    if CUT not in text:
        ids, around = (_plain(tokenizer, part, add_special_tokens) for part in (text, ""))
        if _names_alone(specials, text, ids, around):
            return ids
    (ids,) = _tokens(tokenizer, [text], add_special_tokens, specials)
    return ids


def _plain(tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    return list(tokenizer(text, **({} if add_special_tokens else {"add_special_tokens": False}))["input_ids"])


def encode_sample(tokenizer, template: Template, conversation: list[dict], max_length: int) -> dict | None:
    """Ids and labels of one training sample, or None if no answer token is left to train on: see `encode_conversations`."""
    (texts,), (parts,) = _encode(tokenizer, template, [conversation])
    return _sample(template, conversation, texts, parts, max_length)


def encode_conversations(
    tokenizer, template: Template, conversations: Sequence[list[dict]], max_length: int
) -> tuple[list[dict], dict]:
    """All samples that have something to train on, and a report {"kept", "no_response", "truncated", "hash"}.

    A sample is {"input_ids", "labels"}; labels are -100 everywhere except on the answers and the token after each. A sample
    longer than `max_length` loses its end. An answer of white space, or with "train": False, is context only. If there are
    any, the report counts the latter as "untrained", and special tokens in texts as "special_tokens". `hash` is that of the
    kept token ids, in their order: the identity of the training data.
    """
    samples, truncated = [], 0
    with tqdm(total=len(conversations), desc="encode", unit="sample", disable=len(conversations) < 5000) as bar:
        for start in range(0, len(conversations), CHUNK):
            some = conversations[start : start + CHUNK]
            for messages, text, parts in zip(some, *_encode(tokenizer, template, some), strict=True):
                sample = _sample(template, messages, text, parts, max_length)
                if sample is not None:
                    truncated += sum(map(len, parts)) > max_length
                    samples.append(sample)
            bar.update(len(some))
    found = _found(tokenizer, template, conversations)
    if found:
        logger.warning("%s", report_line(found, template))
    empty = len(conversations) - len(samples)
    untrained = sum(is_untrained(message) for messages in conversations for message in messages)
    also = f" that is to be trained ({untrained} answers are not)" if untrained else ""
    if empty:
        logger.warning(
            "%d of %d samples have no response%s within %d tokens and are left out",
            *(empty, len(conversations), also, max_length),
        )
    if not samples:
        raise UserError(f"no sample has a response{also} within max_length {max_length}; raise --max_length")
    report = {"kept": len(samples), "no_response": empty, "truncated": truncated}
    report |= {"untrained": untrained} if untrained else {}
    report |= {"special_tokens": dict(found.most_common())} if found else {}
    return samples, report | {"hash": digest([sample["input_ids"] for sample in samples])}


def decode_after(tokenizer, before: Sequence[int], ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """The text that `ids` add to `before`. SentencePiece decoders drop a leading blank if `ids` are decoded alone."""
    options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
    head, whole = (tokenizer.decode([*ids_], **options) for ids_ in (before, [*before, *ids]))
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode([*ids], **options)


def _found(tokenizer, template: Template, conversations: Sequence[list[dict]]) -> Counter:
    """Count of each special token's name in the messages."""
    specials = special_tokens(tokenizer, template)
    return Counter(
        name for messages in conversations for message in messages for name in specials.found(message["content"])
    )


def _encode(
    tokenizer, template: Template, conversations: Sequence[list[dict]]
) -> tuple[list[list[str]], list[list[list[int]]]]:
    """(the texts of each conversation, their ids); each answer ends with the end token."""
    end, specials = end_id(tokenizer, template), special_tokens(tokenizer, template)
    if is_text(template):
        conversations = [cut_messages(specials, messages) for messages in conversations]
    else:
        specials = None
    texts = [turns(template, tokenizer, messages) for messages in conversations]
    first = _tokens(tokenizer, [text[0] for text in texts], template.name != CHAT, specials)
    if template.name != CHAT and tokenizer.bos_token_id != tokenizer.eos_token_id:
        first = [_without_end(ids, tokenizer.eos_token_id) for ids in first]
    later = iter(_tokens_after(tokenizer, [part for text in texts for part in text[1:]], specials))
    encoded = []
    for text, ids in zip(texts, first, strict=True):
        parts = [ids, *(next(later) for _ in text[1:])]
        encoded.append([part + [end] if number % 2 else part for number, part in enumerate(parts)])
    return texts, encoded


def _tokens(
    tokenizer, texts: list[str], add_special_tokens: bool = False, specials: SpecialTokens | None = None
) -> list[list[int]]:
    """The ids of each text. With `specials`, a text is encoded as letters where it is cut, and also if it yields more
    control tokens than it has names of them: a tokenizer may normalise a text first, turning full-width letters into "</s>"."""
    if not texts:
        return []
    options = {"add_special_tokens": add_special_tokens, "return_attention_mask": False, "verbose": False}
    if specials is None:
        return [list(row) for row in tokenizer(texts, **options)["input_ids"]]
    ids = tokenizer(["", *(text.replace(CUT, "") for text in texts)], **options)
    around, *encoded = [list(row) for row in ids["input_ids"]]
    for number, text in enumerate(texts):
        if CUT in text or not _names_alone(specials, text, encoded[number], around):
            encoded[number] = _letters(tokenizer, text, options, specials)
    return encoded


def _names_alone(specials: SpecialTokens, text: str, ids: list[int], around: list[int]) -> bool:
    """Return True if all control tokens in `ids` come from names in the text or from what the tokenizer puts `around` any
    text."""
    if specials.ids.isdisjoint(ids):
        return True
    return count(specials, ids) <= count(specials, around) + len(specials.found(text))


def _letters(tokenizer, text: str, options: dict, specials: SpecialTokens) -> list[int]:
    """The ids of a text that is cut. It is encoded in one piece, by the tokenizer's own option for this, if the text holds
    no control token of a template and the option works (with a Unigram model it does not); else piece by piece."""
    # The template's own names: those in the messages are cut, except one-letter names.
    own = sum(len(name) > 1 for name in specials.found(text))
    if not own:
        whole = tokenizer(text.replace(CUT, ""), **options | {"add_special_tokens": False}, split_special_tokens=True)
        if specials.ids.isdisjoint(whole["input_ids"]):
            return list(tokenizer(text.replace(CUT, ""), **options, split_special_tokens=True)["input_ids"])
    first, *pieces = text.split(CUT)
    (head,) = _tokens(tokenizer, [first], options["add_special_tokens"])
    if tokenizer.bos_token_id != tokenizer.eos_token_id:
        head = _without_end(head, tokenizer.eos_token_id)
    rest = [token for piece in _tokens_after(tokenizer, pieces) for token in piece]
    (bare,) = _tokens(tokenizer, [first])
    check(specials, bare + rest, own)
    return head + rest


def _tokens_after(tokenizer, texts: list[str], specials: SpecialTokens | None = None) -> list[list[int]]:
    """The ids of texts that continue another one.

    SentencePiece tokenizers put a blank before a text that stands alone, but not inside a text. With such a tokenizer the
    text is encoded behind ANCHOR, and the ids of ANCHOR are cut off again.
    """
    alone, anchor, anchored = _tokens(tokenizer, ["a", ANCHOR, ANCHOR + "a"])
    if anchored[: len(anchor)] != anchor or anchored[len(anchor) :] == alone:
        return _tokens(tokenizer, texts, specials=specials)
    return [ids[len(anchor) :] for ids in _tokens(tokenizer, [ANCHOR + text for text in texts], specials=specials)]


def _without_end(ids: list[int], eos: int) -> list[int]:
    """Drop trailing end tokens: some tokenizers close every text."""
    while ids and ids[-1] == eos:
        ids = ids[:-1]
    return ids


def _sample(
    template: Template, messages: list[dict], texts: list[str], parts: list[list[int]], max_length: int
) -> dict | None:
    ids, labels = [], []
    answers = [message for message in messages if message["role"] == "assistant"]
    for number, (text, part) in enumerate(zip(texts, parts, strict=True)):
        trained = (
            number % 2 and text.removeprefix(template.separator).strip() and not is_untrained(answers[number // 2])
        )
        ids += part
        labels += part if trained else [IGNORED] * len(part)
    ids, labels = ids[:max_length], labels[:max_length]
    return {"input_ids": ids, "labels": labels} if any(label != IGNORED for label in labels) else None
