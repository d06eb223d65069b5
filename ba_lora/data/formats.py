"""Rows of the usual instruction formats → conversations, the one form that everything after it knows.

A conversation is a list of {"role", "content"}: perhaps a system message first, then user and assistant in turn, the
assistant last. Pairs, Alpaca's three fields, ShareGPT's `conversations` and OpenAI's `messages` are recognised by their field
names, or named.
"""

import logging
from collections.abc import Sequence

from ..errors import UserError
from .sources import Table

logger = logging.getLogger(__name__)

# Field names that are recognised without being named, in this order: one is a conversation, two are prompt and response,
# three are Alpaca's instruction, its input (which may be empty) and its output.
KNOWN_FIELDS = (
    ("messages",),
    ("conversations",),
    ("instruction", "input", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
SKIP = "mend it, or leave such rows out with --skip_bad_rows"


def read_conversations(
    table: Table, fields: Sequence[str] | None = None, skip_bad: bool = False
) -> tuple[list[list[dict]], dict]:
    """The conversations of a table, and a report {"read", "skipped"}.

    fields: one, two or three column names (see KNOWN_FIELDS); without them the first known ones that are there. skip_bad:
    leave out rows that are no conversation, count them, and log the first reason; otherwise such a row raises UserError
    with its number.
    """
    fields = tuple(fields) if fields else _recognise(table)
    convert = {1: _from_messages, 2: _from_pair, 3: _from_alpaca}[len(fields)]
    conversations, reasons = [], []
    for number, row in table.rows:
        place = f"{table.source}, row {number}"
        try:
            conversation = convert(row, fields, place)
            check_conversation(conversation, place)
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{error}; {SKIP}") from None
            reasons.append(str(error))
            continue
        conversations.append(conversation)
    if reasons:
        logger.warning("%d of %d rows are left out; the first: %s", len(reasons), len(table.rows), reasons[0])
    if not conversations:
        raise UserError(f"{table.source}: every row is left out by --skip_bad_rows; the first: {reasons[0]}")
    return conversations, {"read": len(table.rows), "skipped": len(reasons)}


def check_conversation(messages: list[dict], place: str, answered: bool = True) -> None:
    """Raise UserError, beginning with `place`, unless user and assistant alternate and the right one is last.

    answered: whether the assistant must be last (to train on) or the user (to be answered).
    """
    spoken = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not spoken:
        raise UserError(f"{place}: the conversation is empty")
    for turn, message in enumerate(spoken):
        expected = "assistant" if turn % 2 else "user"
        if message["role"] != expected:
            after = f"after {spoken[turn - 1]['role']}" if turn else "first"
            raise UserError(f"{place}: roles out of order ({message['role']} {after}, {expected} is expected)")
    last = spoken[-1]["role"]
    if answered and last == "user":
        raise UserError(f"{place}: the conversation ends with the user, an answer is needed")
    if not answered and last == "assistant":
        raise UserError(f"{place}: the conversation ends with the assistant; there is nothing to answer")


def _recognise(table: Table) -> tuple[str, ...]:
    present = set(table.columns)
    fields = next((known for known in KNOWN_FIELDS if present.issuperset(known)), None)
    if fields is None:
        raise UserError(
            f"{table.source} has the fields {', '.join(table.columns)}; name the prompt and the response with --fields "
            "PROMPT RESPONSE, or the conversation with --fields NAME"
        )
    return fields


def _text(row: dict, field: str, place: str) -> str:
    if field not in row:
        raise UserError(f"{place} has no field '{field}' (it has: {', '.join(row)}), see --fields")
    if not isinstance(row[field], str):
        raise UserError(f"{place}: field '{field}' is {_short(row[field])}, a text is needed, see --fields")
    return row[field]


def question(prompt: str) -> list[dict]:
    """One question as a conversation to be answered."""
    return [{"role": "user", "content": prompt}]


def exchange(prompt: str, response: str) -> list[dict]:
    """One question and its answer as a conversation."""
    return [*question(prompt), {"role": "assistant", "content": response}]


def _from_pair(row: dict, fields: Sequence[str], place: str) -> list[dict]:
    return exchange(*(_text(row, field, place) for field in fields))


def _from_alpaca(row: dict, fields: Sequence[str], place: str) -> list[dict]:
    instruction, given, output = fields
    extra = _text(row, given, place) if given in row else ""
    prompt = _text(row, instruction, place) + ("\n\n" + extra if extra.strip() else "")
    return exchange(prompt, _text(row, output, place))


def _from_messages(row: dict, fields: Sequence[str], place: str) -> list[dict]:
    (field,) = fields
    if field not in row:
        raise UserError(f"{place} has no field '{field}' (it has: {', '.join(row)}), see --fields")
    if not isinstance(row[field], list):
        raise UserError(f"{place}: field '{field}' is {_short(row[field])}, a list of messages is needed, see --fields")
    return [_message(message, f"{place}, message {number}") for number, message in enumerate(row[field], 1)]


def _message(message, place: str) -> dict:
    """A message with role and content (OpenAI), or from and value (ShareGPT)."""
    if not isinstance(message, dict):
        raise UserError(f"{place} is {_short(message)}, an object with role and content is needed")
    role = message.get("role") or message.get("from")
    content = message.get("value") if message.get("content") is None else message["content"]
    if role not in ROLES:
        raise UserError(f"{place}: the role is {_short(role)}, one of {', '.join(ROLES)} is needed")
    if not isinstance(content, str):
        raise UserError(f"{place}: the content is {_short(content)}, a text is needed")
    return {"role": ROLES[role], "content": content}


def _short(value) -> str:
    """`value` for a message of one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
