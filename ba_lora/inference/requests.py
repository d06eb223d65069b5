"""Requests to a model: prompts as text and as token ids, and how completions are sampled."""

from collections.abc import Sequence
from typing import NamedTuple

from ..data.formats import question
from ..data.instruction import encode_prompt, encode_text
from ..data.special_tokens import special_tokens
from ..data.templates import turns
from .subject import Subject


class Request(NamedTuple):
    """One prompt: as text for generations.jsonl, as token ids for the backend, and a JSON value to score against.

    special: the names of the special tokens that occur in the texts from which the prompt was made.
    """

    id: str | int
    prompt: str
    ids: list[int]
    reference: object
    special: tuple[str, ...] = ()


class Sampling(NamedTuple):
    """How completions are sampled. Temperature 0 is greedy; `stop` strings end a completion and are not part of its text."""

    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()


class Job(NamedTuple):
    """One completion to generate: the prompt as token ids and as text, and the seed of this completion alone."""

    ids: Sequence[int]
    text: str
    seed: int


def make_request(subject: Subject, key: str | int, prompt: str | list[dict], reference: object) -> Request:
    """The request for a question, or for a conversation that ends with the user, in the subject's template."""
    messages = question(prompt) if isinstance(prompt, str) else prompt
    specials = special_tokens(subject.tokenizer, subject.template)
    special = tuple(name for message in messages for name in specials.found(message["content"]))
    end = subject.template.end or subject.tokenizer.eos_token
    parts = turns(subject.template, subject.tokenizer, messages)
    text = "".join(part + end * (number % 2) for number, part in enumerate(parts))
    return Request(key, text, encode_prompt(subject.tokenizer, subject.template, messages), reference, special)


def make_plain_request(subject: Subject, key: str | int, prompt: str, reference: object) -> Request:
    """The request for a text to be continued as it is, with the beginning-of-sequence token if the tokenizer adds one."""
    template = getattr(subject, "template", None)
    special = tuple(special_tokens(subject.tokenizer, template).found(prompt))
    return Request(key, prompt, encode_text(subject.tokenizer, template, prompt), reference, special)
