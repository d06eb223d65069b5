"""Convert rows of the common instruction formats to conversations, the one form that all later code uses.

A conversation is a list of {"role", "content"}: optionally a system message, then user and assistant in turn, with the
assistant last. An answer that is not trained also has "train": False. Pairs, Alpaca's three fields, ShareGPT's
`conversations` and OpenAI's `messages` are recognised by their field names, or named with --fields. The rules for everything
else in a row or a message are in `columns`.
"""

import logging
from collections.abc import Sequence

from ..errors import UserError, short
from .columns import USED, Lost, add_system_and_history, check_left_out, is_trained
from .sources import Table

logger = logging.getLogger(__name__)

# Field names that are recognised without --fields, in this order. One is a conversation; two are prompt and response;
# three are Alpaca's instruction, input (which may be empty) and output.
KNOWN_FIELDS = (
    ("messages",),
    ("conversations",),
    ("instruction", "input", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("instruction", "input", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
LEAVE_OUT = "leave such rows out with --skip_bad_rows"
MESSAGE = ("role", "from", "content", "value", "weight", "train")  # the keys of a message that are used


def read_conversations(
    table: Table, fields: Sequence[str] | None = None, skip_bad: bool = False, ignore: Sequence[str] = ()
) -> tuple[list[list[dict]], dict]:
    """The conversations of a table, and a report {"read", "skipped"}.

    fields: one, two or three column names (see KNOWN_FIELDS); by default the first known ones that are present. skip_bad:
    leave out rows that are not conversations, count them, and log the first reason; otherwise such a row raises UserError
    with its number. ignore: columns, and keys of messages, to treat as absent.
    """
    chosen, fields = bool(fields), tuple(fields) if fields else _recognise(table)
    if named := [name for name in ignore if name in fields]:
        raise UserError(f"--ignore_columns {named[0]}: this is where the conversation is read from; name other columns")
    conversations, reasons, left = [], [], {}
    for number, row in table.rows:
        place = f"{table.source}, row {number}"
        try:
            conversation, left_out = _conversation(_without(row, ignore), fields, chosen, ignore, place)
            check_conversation(conversation, place)
        except UserError as error:
            if not skip_bad:
                remedy = f"or {LEAVE_OUT}" if isinstance(error, Lost) else f"fix it, or {LEAVE_OUT}"
                raise UserError(f"{error}; {remedy}") from None
            reasons.append(str(error))
            continue
        conversations.append(conversation)
        left |= dict.fromkeys(left_out)
    if reasons:
        logger.warning("%d of %d rows are left out; the first: %s", len(reasons), len(table.rows), reasons[0])
    if left:
        logger.warning("%s: not part of the conversations, and ignored: %s", table.source, ", ".join(left))
    if not conversations:
        raise UserError(f"{table.source}: every row is left out by --skip_bad_rows; the first: {reasons[0]}")
    return conversations, {"read": len(table.rows), "skipped": len(reasons)}


def _without(holder: dict, names: Sequence[str]) -> dict:
    return {name: value for name, value in holder.items() if name not in names} if names else holder


def _conversation(
    row: dict, fields: Sequence[str], chosen: bool, ignore: Sequence[str], place: str
) -> tuple[list[dict], list[str]]:
    """(the conversation of a row, the names of the ignored columns)."""
    left: list[str] = []
    if len(fields) == 1:
        conversation = _from_messages(row, fields, ignore, left, place)
    else:
        conversation = {2: _from_pair, 3: _from_alpaca}[len(fields)](row, fields, place)
    conversation = add_system_and_history(conversation, row, fields, place)
    flags = {name: row[name] for name in ("weight", "train") if name in row and name not in fields}
    if is_trained(flags, place) is False:
        conversation = [m | {"train": False} if m["role"] == "assistant" else m for m in conversation]
    return conversation, left + check_left_out(row, {*USED, *fields}, conversation, place, chosen)


def check_conversation(messages: list[dict], place: str, answered: bool = True) -> None:
    """Raise UserError, beginning with `place`, unless user and assistant alternate and the right one is last.

    answered: True if the assistant must be last (for training), False if the user must be (to be answered).
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
        raise UserError(f"{place}: field '{field}' is {short(row[field])}, a text is needed, see --fields")
    return row[field]


def question(prompt: str) -> list[dict]:
    """One question as a conversation to be answered."""
    return [{"role": "user", "content": prompt}]


def exchange(prompt: str, response: str) -> list[dict]:
    """One question and its answer as a conversation."""
    return [*question(prompt), {"role": "assistant", "content": response}]


def is_untrained(message: dict) -> bool:
    """Return True if a message is an answer excluded from training."""
    return message.get("train") is False


def _from_pair(row: dict, fields: Sequence[str], place: str) -> list[dict]:
    return exchange(*(_text(row, field, place) for field in fields))


def _from_alpaca(row: dict, fields: Sequence[str], place: str) -> list[dict]:
    instruction, given, output = fields
    extra = _text(row, given, place) if given in row else ""
    prompt = _text(row, instruction, place) + ("\n\n" + extra if extra.strip() else "")
    return exchange(prompt, _text(row, output, place))


def _from_messages(row: dict, fields: Sequence[str], ignore: Sequence[str], left: list[str], place: str) -> list[dict]:
    (field,) = fields
    if field not in row:
        raise UserError(f"{place} has no field '{field}' (it has: {', '.join(row)}), see --fields")
    if not isinstance(row[field], list):
        raise UserError(f"{place}: field '{field}' is {short(row[field])}, a list of messages is needed, see --fields")
    return [
        _message(message, ignore, left, f"{place}, message {number}") for number, message in enumerate(row[field], 1)
    ]


def _message(message, ignore: Sequence[str], left: list[str], place: str) -> dict:
    """A message with role and content (OpenAI), or from and value (ShareGPT); the names of its ignored keys are added to
    `left`."""
    if not isinstance(message, dict):
        raise UserError(f"{place} is {short(message)}, an object with role and content is needed")
    message = _without(message, ignore)
    role, content = (_one_of(message, names, place) for names in (("role", "from"), ("content", "value")))
    if not isinstance(role, str) or role not in ROLES:
        raise UserError(f"{place}: the role is {short(role)}, one of {', '.join(ROLES)} is needed")
    if not isinstance(content, str):
        raise UserError(f"{place}: the content is {short(content)}, a text is needed")
    made, trained = {"role": ROLES[role], "content": content}, is_trained(message, place)
    if trained and made["role"] != "assistant":
        raise UserError(
            f"{place}: weight or train asks to train on a message of the {made['role']}; only answers are trained"
        )
    left += check_left_out(message, MESSAGE, [made], place)
    return made | ({"train": False} if trained is False and made["role"] == "assistant" else {})


def _one_of(message: dict, names: tuple[str, str], place: str):
    """The value that a message has under one of two names, or under both."""
    values = [message[name] for name in names if message.get(name) is not None]
    meant = [ROLES.get(value, value) if isinstance(value, str) else value for value in values]
    if len(meant) == 2 and meant[0] != meant[1]:
        raise UserError(
            f"{place}: {names[0]} is {short(values[0])} and {names[1]} {short(values[1])}; keep one of them"
        )
    return values[0] if values else None
