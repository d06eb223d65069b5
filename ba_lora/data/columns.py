"""The columns next to a conversation in a data file: used, safe to ignore, or an error.

A column is used (`system`, `history`, `weight`, `train`), or it only describes its row (METADATA), or it repeats the
conversation. Columns of the last two kinds are ignored, and one line names them. Any other column could change what should
be learned, so it is rejected by name until --ignore_columns names it. If --fields names the conversation's own columns, the
user has chosen among them, and only CARRIERS, `input` and other spellings of the used columns ("System") are rejected. Empty
values count as absent. The keys of a message follow the same rules.
"""

import re
import shlex
from collections.abc import Collection
from numbers import Number

from ..errors import UserError, short

SYSTEM = ("system", "system_prompt")
USED = (*SYSTEM, "history", "weight", "train")
# Origin, number, topic and author of a row, under the names that published sets use, in any case.
METADATA = frozenset(
    """
    id _id idx index uid uuid guid hash row_id prompt_id question_id conversation_id conv_id message_id task_id original_index
    original_id __index_level_0__ unnamed:_0
    source sources data_source problem_source dataset dataset_name origin subset split resource url license
    type task task_type task_name category categories subcategory topic topics domain subject level difficulty tags lang language
    model model_name model_id generator author avatarurl date time timestamp created created_at updated_at
    original_question num_turns num_tokens token_count length views
    """.split()
)
# In other formats these are part of the conversation, or control how it is trained.
CARRIERS = frozenset(
    """
    system_message system_instruction chat_history conversation_history sample_weight weights
    tools tool_calls tool_choice tool_results functions function function_call function_calls parallel_tool_calls
    image images video videos audio audios file files media attachments documents
    context prefix suffix chosen rejected preference label labels kto_tag reward
    reasoning reasoning_content thinking thought chain_of_thought
    mask masks loss loss_weight train_on_input train_on_prompt train_detail chat_template chat_template_kwargs
    """.split()
)


class Lost(UserError):
    """A column or key that would silently be left out of the training."""


def check_left_out(
    row: dict, used: Collection[str], conversation: list[dict], place: str, chosen: bool = False
) -> list[str]:
    """The names of the columns of `row` that are ignored. Raises Lost for one that may not be.

    used: columns that are read. chosen: True if the user named the columns of the conversation.
    """
    left = [name for name, value in row.items() if name not in used and not is_empty(value)]
    lost = [name for name in left if not _may_be_left_out(name, row[name], conversation, chosen)]
    if lost:
        first, *others = lost
        also = f", and so would {', '.join(map(short, others))}; name them" if others else "; name it"
        raise Lost(
            f"{place}: the column {short(first)} ({short(row[first])}) would be lost{also} with --ignore_columns "
            + " ".join(shlex.quote(" ".join(name.split())[:60]) for name in lost)
        )
    return left


def _may_be_left_out(name: str, value, conversation: list[dict], chosen: bool) -> bool:
    plain = name.lower().replace(" ", "_")
    words = re.sub(r"[\s-]", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)).lower()  # "toolCalls" is tool_calls
    if plain in METADATA or words in METADATA:
        return True
    if words in CARRIERS or words in USED:
        return False
    return _repeats(name, value, conversation) or (chosen and words != "input")  # half of an Alpaca prompt


def is_empty(value) -> bool:
    """Return True if a value carries no information. A list or object is empty if all its values are (Parquet has these); so
    is "[]"."""
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, list | dict):
            values += value.values() if isinstance(value, dict) else value
        elif value is not None and not (isinstance(value, str) and value.strip() in ("", "[]", "{}")):
            return False
    return True


def _repeats(name: str, value, conversation: list[dict]) -> bool:
    """Return True if a value is the text of a message or, in a column `text`, contains the texts of all of them (as in
    Alpaca)."""
    texts = [message["content"].strip() for message in conversation]
    whole = name == "text" and isinstance(value, str) and all(text in value for text in texts)
    return whole or (isinstance(value, str) and value.strip() in texts)


def is_trained(holder: dict, place: str) -> bool | None:
    """Return True if the `weight` and `train` of a row or a message say that it is trained; None if they say nothing.

    Raises UserError for a weight that is not 0 or 1, and for a `train` that is not true or false.
    """
    said = []
    for name, kind, known in (
        ("weight", Number | str, {0: False, 1: True, "0": False, "1": True, "0.0": False, "1.0": True}),
        ("train", bool | str, {True: True, False: False, "true": True, "false": False}),
    ):
        value = holder.get(name)
        if is_empty(value):
            continue
        key = value.strip().lower() if isinstance(value, str) else value
        if not isinstance(value, kind) or (name == "weight" and isinstance(value, bool)) or key not in known:
            needed = "0 or 1" if name == "weight" else "true or false"
            raise UserError(f"{place}: '{name}' is {short(value)}, {needed} is needed")
        said.append(known[key])
    return all(said) if said else None


def add_system_and_history(conversation: list[dict], row: dict, used: Collection[str], place: str) -> list[dict]:
    """The conversation with the system message and the earlier turns from the columns next to it.

    A beginning that the conversation already has is not repeated. Raises UserError for two different system messages, a
    system message that is not a text, and a history that is not a list of [prompt, answer] pairs.
    """
    named = {name: row[name] for name in SYSTEM if name not in used and not is_empty(row.get(name))}
    for name, value in named.items():
        if not isinstance(value, str):
            raise UserError(f"{place}: '{name}' is {short(value)}, a text is needed")
    first = [message for message in conversation[:1] if message["role"] == "system"]
    rest, texts = conversation[len(first) :], [message["content"] for message in first if message["content"].strip()]
    texts += named.values()
    if others := [text for text in texts if text.strip() != texts[0].strip()]:
        raise UserError(f"{place}: two system messages, {short(texts[0])} and {short(others[0])}; keep one of them")
    system = [{"role": "system", "content": text} for text in texts[:1]] if named else first
    earlier = [] if "history" in used or is_empty(row.get("history")) else _history(row["history"], place)
    begins = [{"role": message["role"], "content": message["content"]} for message in rest[: len(earlier)]]
    return [*system, *([] if begins == earlier else earlier), *rest]


def _history(value, place: str) -> list[dict]:
    pairs = value if isinstance(value, list) else [value]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f"{place}: 'history' holds {short(pair)}, a list of [prompt, answer] pairs is needed")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
