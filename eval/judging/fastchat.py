"""FastChat's conversation templates, from its package: a question and its follow-up as FastChat itself would write them.

Only one file of the package is executed, `fastchat/conversation.py`, which needs only the standard library.
"""

import importlib.util
import sys
from functools import cache

from ba_lora.data.instruction import encode_cut
from ba_lora.data.special_tokens import special_tokens
from ba_lora.data.templates import Template, end_id
from ba_lora.errors import UserError, choose
from ba_lora.inference.requests import Request
from ba_lora.inference.subject import Subject
from ba_lora.packages import fetch

PACKAGE = ("fschat", "0.2.36")
FIRST, ANSWER, LATER = "\ue001", "\ue002", "\ue003"  # placeholders for texts while a template is examined


@cache
def _templates() -> dict:
    file = fetch(*PACKAGE) / "fastchat/conversation.py"
    spec = importlib.util.spec_from_file_location("fastchat_conversation", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look up their module
    spec.loader.exec_module(module)
    return module.conv_templates


def write(name: str, texts: list[str]) -> str:
    """Return the prompt of FastChat's template `name`; `texts` alternate between user and assistant and end with the user's.

    Raises UserError for a name that FastChat does not have, and for a template of an endpoint, which has no text.
    """
    conversation = _templates()[choose("FastChat template", name, _templates())].copy()
    for number, text in enumerate([*texts, None]):
        conversation.append_message(conversation.roles[number % 2], text)
    try:
        return conversation.get_prompt()
    except ValueError:
        raise UserError(f"FastChat's template {name} is for an endpoint and writes no text; name another one") from None


def stop_strings(name: str) -> tuple[str, ...]:
    """Return the strings that end an answer in FastChat's template `name`."""
    stop = _templates()[name].stop_str
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def template_of(name: str, tokenizer) -> Template:
    """Return the run's record of FastChat's template `name`. `end`: the tokenizer's token that the template writes after an
    answer, else its end of sequence. Raises UserError if the second prompt does not contain the first question."""
    first, whole = write(name, [FIRST]), write(name, [FIRST, ANSWER, LATER])
    if FIRST not in first or whole.count(ANSWER) != 1 or LATER not in whole:
        raise UserError(f"FastChat's template {name} does not show both turns; name another one")
    after = whole.split(ANSWER)[1]
    known = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    end = max((token for token in known if after.lstrip().startswith(token)), key=len, default=tokenizer.eos_token)
    later = after.replace(LATER, "{instruction}")
    prompt = first.replace(FIRST, "{instruction}")
    template = Template(f"fastchat:{name}", prompt, "", later, end=end, special_tokens_in_text="text")
    end_id(tokenizer, template)
    return template


def make_request(subject: Subject, key: str | int, texts: list[str], reference: object) -> Request:
    """Return the request of a conversation in the subject's FastChat template, encoded as one text, as FastChat does. If both the
    template and the tokenizer write a beginning of sequence, it appears once."""
    name, specials = subject.template.name.partition(":")[2], special_tokens(subject.tokenizer, subject.template)
    prompt, special = write(name, texts), tuple(found for text in texts for found in specials.found(text))
    ids = encode_cut(subject.tokenizer, write(name, [specials.cut(text) for text in texts]), specials)
    begin = subject.tokenizer.bos_token_id
    if begin is not None and ids[:2] == [begin, begin]:
        ids = ids[1:]
    return Request(key, prompt, ids, reference, special)
