"""Convert a conversation to text: contexts and answers in turn, each of which is encoded separately.

`alpaca` and `plain` are defined here; `chat` is the tokenizer's own chat template. run.json records the whole template, so
that every evaluation uses the form of the training, even if the tokenizer's template changes later.
"""

import re
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from jinja2 import TemplateError

from ..errors import UserError, choose
from ..files import read_json
from ..folders.places import TWIN


@dataclass(frozen=True)
class Template:
    """The text form of messages.

    prompt: the first user turn, containing {instruction}; for `chat`, the Jinja text. separator: between prompt and answer,
    encoded with the answer. later: a user turn after the end of an answer; "" = a blank line and `prompt`. opening: text
    that a chat template writes before an answer, beyond its generation prompt; part of the context. end: the token that ends
    an answer; None = the tokenizer's end of sequence. special_tokens_in_text: whether "</s>" and similar tokens in a message
    are "text" or "control" tokens (see `special_tokens`); templates recorded by earlier versions lack it, which means
    "control".
    """

    name: str
    prompt: str
    separator: str
    later: str = ""
    opening: str = ""
    end: str | None = None
    special_tokens_in_text: str = "control"

    def render(self, instruction: str) -> str:
        """The text of a first question; not for `chat`, which needs its tokenizer (see `turns`)."""
        return self.prompt.replace("{instruction}", instruction)

    def render_later(self, instruction: str) -> str:
        """The text between an answer's end and the next answer."""
        return (self.later or "\n\n" + self.prompt).replace("{instruction}", instruction)


TEMPLATES = {
    # The Alpaca-style prompt of the published runs; as in those, the response follows "Response:" directly.
    "alpaca": Template(
        "alpaca",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{instruction}\n\n### Response:",
        "",
        "\n\n### Instruction:\n{instruction}\n\n### Response:",
        special_tokens_in_text="text",
    ),
    "plain": Template(
        "plain",
        "Question: {instruction}\nAnswer:",
        " ",
        "\n\nQuestion: {instruction}\nAnswer:",
        special_tokens_in_text="text",
    ),
}
CHAT = "chat"
IN_TEXT = ("text", "control")  # possible treatments of special tokens in texts
NAMES = (*TEMPLATES, CHAT)
REMEDY = "use --template alpaca"
FIXED_DATE = date(2024, 7, 26)  # the value of today's date in a template: a run must not depend on its day


def check_template(name: str) -> str:
    """Return `name` if it is one of NAMES; UserError with the known names otherwise."""
    return choose("template", name, NAMES)


def default_template(model: str) -> str:
    """The default template: `plain` for the embedded model and twins, `alpaca`, as in the published runs, for all others."""
    return "plain" if model == "tiny" or model.startswith(TWIN) else "alpaca"


def make_template(name: str, tokenizer, special_tokens_in_text: str = "text") -> Template:
    """The template `name`, completed for this tokenizer. Raises UserError if the tokenizer lacks something that it needs."""
    if check_template(name) != CHAT:
        return replace(TEMPLATES[name], end=_eos(tokenizer), special_tokens_in_text=special_tokens_in_text)
    try:
        text = tokenizer.get_chat_template()
    except ValueError:
        raise UserError(f"--template chat: this tokenizer has no chat template; {REMEDY} or plain") from None
    text = re.sub(r"""strftime_now\((["'])(.*?)\1\)""", lambda call: repr(FIXED_DATE.strftime(call[2])), text)
    return _probe(Template(CHAT, text, "", special_tokens_in_text=special_tokens_in_text), tokenizer)


def template_of(folder: str | Path) -> Template | None:
    """The template recorded in the run.json of a run folder, or of the run that an adapter folder belongs to."""
    for place in (Path(folder), Path(folder).parent):
        if (place / "run.json").is_file():
            recorded = read_json(place / "run.json").get("template")
            return Template(**recorded) if recorded else None
    return None


def end_id(tokenizer, template: Template | None = None) -> int:
    """The id of the token that ends an answer. Raises UserError if the tokenizer has none."""
    token = template.end if template is not None and template.end is not None else _eos(tokenizer)
    number = tokenizer.convert_tokens_to_ids(token)
    if number is None or (number == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise UserError(f"the template ends an answer with {token!r}, which this tokenizer does not know; {REMEDY}")
    return number


def turns(template: Template, tokenizer, messages: list[dict]) -> list[str]:
    """[context, answer, context, answer, …, and a last context if the user speaks last]; the end token follows each answer.

    Raises UserError if a chat template rejects, drops or rewrites a message.
    """
    return _chat_turns(template, tokenizer, messages) if template.name == CHAT else _written_turns(template, messages)


def _eos(tokenizer) -> str:
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-sequence token, so no answer can end; set tokenizer.eos_token")
    return tokenizer.eos_token


def _written_turns(template: Template, messages: list[dict]) -> list[str]:
    """The turns of a template from this file. A system message comes before the first user's text, separated by a blank
    line."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    texts = []
    for message in messages:
        if message["role"] == "assistant":
            texts.append(template.separator + message["content"])
        elif message["role"] == "user" and texts:
            texts.append(template.render_later(message["content"]))
        elif message["role"] == "user":
            texts.append(
                template.render(system + "\n\n" + message["content"] if system.strip() else message["content"])
            )
    return texts


def _render(template: Template, tokenizer, messages: list[dict], ask: bool) -> str:
    """The chat template's text; with `ask`, up to where an answer begins."""
    messages = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template.prompt, tokenize=False, add_generation_prompt=ask
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the chat template refuses a conversation of {roles} ({reason}); {REMEDY}") from None
    return text + template.opening if ask else text


def _chat_turns(template: Template, tokenizer, messages: list[dict]) -> list[str]:
    texts, done = [], ""
    if messages[0]["role"] == "system" and messages[0]["content"].strip() not in _render(
        template, tokenizer, messages[:2], True
    ):
        raise UserError(f"the chat template leaves the system message out; {REMEDY}")
    for turn, message in enumerate(messages):
        last = turn == len(messages) - 1
        if message["role"] != "assistant" and not (last and message["role"] == "user"):
            continue
        before = messages[:turn] if message["role"] == "assistant" else messages
        context = _render(template, tokenizer, before, True)
        if not context.startswith(done):
            raise UserError(f"the chat template rewrites earlier turns, so no answer keeps its text; {REMEDY}")
        texts.append(context[len(done) :])
        if message["role"] == "assistant":
            answer, done = _answer(template, tokenizer, messages[: turn + 1], context)
            texts.append(template.separator + answer)
    return texts


def _answer(template: Template, tokenizer, messages: list[dict], context: str) -> tuple[str, str]:
    """(the text of the last message as the template writes it, everything up to its end).

    If a template trims the text, the trimmed text is trained, because later turns show it that way. Blanks that a template
    puts between the text and its end token (Llama 2) are left out: the answer ends where its text ends.
    """
    whole, start = _render(template, tokenizer, messages, False), context + template.separator
    if whole.startswith(start):
        content, rest = messages[-1]["content"], whole[len(start) :]
        for text in (content, content.strip(), content.lstrip(), content.rstrip()):
            after = rest[len(text) :]
            blanks = len(after) - len(after.lstrip())
            if rest.startswith(text) and after[blanks:].startswith(template.end):
                return text, whole[: len(start) + len(text) + blanks + len(template.end)]
            if rest.startswith(text) and not after.strip():
                return text, start + text
    raise UserError(f"the chat template does not give the text of an answer as it is; {REMEDY}")


def _probe(template: Template, tokenizer) -> Template:
    """Find out how a chat template begins and ends an answer, from one rendered exchange."""
    exchange = [{"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong!"}]
    context = _render(template, tokenizer, exchange[:1], True)
    whole = _render(template, tokenizer, exchange, False)
    if not whole.startswith(context) or whole.count("Pong!") != 1:
        raise UserError(f"the chat template does not write an answer's text behind its generation prompt; {REMEDY}")
    lead, tail = whole[len(context) :].split("Pong!")
    template = replace(template, separator=lead) if not lead.strip() else replace(template, opening=lead)
    tail = tail.lstrip()
    if not tail:
        return replace(template, end=_eos(tokenizer))
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    end = max((token for token in tokens if tail.startswith(token)), key=len, default=None)
    if end is None:
        raise UserError(
            f"the chat template ends an answer with {tail.split()[0][:20]!r}, which is not a token of this tokenizer; {REMEDY}"
        )
    return replace(template, end=end)
