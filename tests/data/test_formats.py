"""Every format of instruction data gives the same conversations; a row that is not one is named, or left out and counted."""

import pytest

from ba_lora.data.cache import load_samples
from ba_lora.data.formats import exchange, read_conversations
from ba_lora.data.sources import Table, read_table
from ba_lora.data.templates import make_template
from ba_lora.errors import UserError
from tests.data.test_sources import write

PAIRS = [("What is 5 + 4?", "9"), ("Say hello\n\nin French", "Bonjour !"), ("數", " x = 1\n")]
SINGLE = [exchange(*pair) for pair in PAIRS]


def table(rows, source="FILE"):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table(source, columns, list(enumerate(rows, 1)))


def sharegpt(conversation, names=("system", "human", "gpt")):
    roles = dict(zip(("system", "user", "assistant"), names, strict=True))
    return [{"from": roles[message["role"]], "value": message["content"]} for message in conversation]


FORMATS = {
    "gsm8k": [{"question": q, "answer": a} for q, a in PAIRS],
    "metamathqa": [{"type": "x", "query": q, "original_question": "y", "response": a} for q, a in PAIRS],
    "codefeedback": [{"lang": "python", "resource": "x", "query": q, "answer": a} for q, a in PAIRS],
    "instruction and output": [{"instruction": q, "output": a, "type": "python"} for q, a in PAIRS],
    "prompt and completion": [{"prompt": q, "completion": a} for q, a in PAIRS],
    "alpaca": [{"instruction": q.partition("\n\n")[0], "input": q.partition("\n\n")[2], "output": a} for q, a in PAIRS],
    "sharegpt": [{"idx": "1", "conversations": sharegpt(c)} for c in SINGLE],
    "sharegpt with openai's roles": [{"conversations": sharegpt(c, ("system", "user", "assistant"))} for c in SINGLE],
    "messages": [{"messages": c, "source": "x"} for c in SINGLE],
}


@pytest.mark.parametrize("rows", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "rows.parquet"])
def test_every_format_gives_the_same_samples_from_every_kind_of_file(tmp_path, tiny_tokenizer, rows, name):
    conversations, report = read_conversations(read_table(write(tmp_path / name, rows)))
    assert conversations == SINGLE and report == {"read": 3, "skipped": 0}


def test_the_same_conversations_are_the_same_samples(tiny_tokenizer):
    template = make_template("plain", tiny_tokenizer)
    hashes = set()
    for rows in FORMATS.values():
        conversations, _ = read_conversations(table(rows))
        hashes.add(load_samples(tiny_tokenizer, template, conversations, 200)[1]["hash"])
    assert len(hashes) == 1


LONG = [{"role": "system", "content": ""}, *exchange("a", "b"), *exchange("c", "d")]


@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "rows.parquet"])
def test_turns_and_system_messages_are_kept(tmp_path, name):
    for number, rows in enumerate(
        ([{"messages": LONG}, {"messages": SINGLE[0]}], [{"conversations": sharegpt(c)} for c in (LONG, SINGLE[0])])
    ):
        assert read_conversations(read_table(write(tmp_path / str(number) / name, rows)))[0] == [LONG, SINGLE[0]]


def test_fields_can_be_named():
    rows = [{"p": "q", "more": "in", "r": "a", "talk": LONG, "output": "?", "instruction": "?"}]
    assert read_conversations(table(rows), ["p", "r"])[0] == [exchange("q", "a")]
    assert read_conversations(table(rows), ["p", "more", "r"])[0] == [exchange("q\n\nin", "a")]
    assert read_conversations(table(rows), ["talk"])[0] == [LONG]


def test_alpacas_input_may_be_empty_or_missing():
    rows = [{"instruction": "q", "input": "", "output": "a"}, {"instruction": "q", "output": "a"}]
    assert read_conversations(table(rows))[0] == [exchange("q", "a")] * 2


def messages(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


USER, ANSWER = ("user", "q"), ("assistant", "a")
BAD = [
    (messages(USER), "the conversation ends with the user, an answer is needed"),
    (messages(USER, ANSWER, USER), "the conversation ends with the user, an answer is needed"),
    (messages(USER, USER, ANSWER), r"roles out of order \(user after user, assistant is expected\)"),
    (messages(USER, ANSWER, ANSWER), r"roles out of order \(assistant after assistant, user is expected\)"),
    (messages(ANSWER, USER, ANSWER), r"roles out of order \(assistant first, user is expected\)"),
    (messages(USER, ("system", "s"), ANSWER), r"roles out of order \(system after user, assistant is expected\)"),
    (
        messages(USER, ("tool", "x"), ANSWER),
        "message 2: the role is 'tool', one of system, human, user, gpt, assistant",
    ),
    (messages(), "the conversation is empty"),
    (messages(("system", "s")), "the conversation is empty"),
    (messages(USER, ("assistant", None)), "message 2: the content is None, a text is needed"),
    (messages(USER, ("assistant", ["x"])), r"message 2: the content is \['x'\], a text is needed"),
    ({"messages": ["q", "a"]}, "message 1 is 'q', an object with role and content is needed"),
    ({"messages": "q"}, "field 'messages' is 'q', a list of messages is needed"),
    ({"id": 1}, r"has no field 'messages' \(it has: id\)"),
]


@pytest.mark.parametrize(("row", "message"), BAD, ids=[message for _, message in BAD])
def test_a_row_that_is_no_conversation_is_named_or_left_out_and_counted(row, message, caplog):
    rows = table([messages(USER, ANSWER), row, messages(USER, ANSWER)])
    with pytest.raises(UserError, match=f"^FILE, row 2.*{message}.*--skip_bad_rows") as error:
        read_conversations(rows)
    assert "\n" not in str(error.value)
    conversations, report = read_conversations(rows, skip_bad=True)
    assert conversations == [exchange("q", "a")] * 2 and report == {"read": 3, "skipped": 1}
    assert "1 of 3 rows are left out; the first: FILE, row 2" in caplog.text
    with pytest.raises(UserError, match="every row is left out by --skip_bad_rows; the first: FILE, row 1"):
        read_conversations(table([row, *[row] * 2]), ["messages"], skip_bad=True)


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([{"question": "a", "answer": "b"}], ["prompt", "answer"], r"row 1 has no field 'prompt' \(it has: question, answer\)"),
        ([{"question": "a", "answer": "b"}, {"question": "x"}], None, r"row 2 has no field 'answer' \(it has: question\)"),
        ([{"question": "x", "answer": 5}], None, "row 1: field 'answer' is 5, a text is needed"),
        ([{"x": "1", "y": "2"}], None, "FILE has the fields x, y; name the prompt and the response with --fields"),
    ],
)  # fmt: skip
def test_a_field_that_is_missing_or_no_text_is_named(rows, fields, message):
    with pytest.raises(UserError, match=message) as error:
        read_conversations(table(rows), fields)
    assert "\n" not in str(error.value) and "--fields" in str(error.value)
