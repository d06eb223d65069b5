"""The columns beside a conversation are used, ignored with a line that says so, or rejected by name. Nothing is lost
silently."""

from decimal import Decimal

import pytest

from ba_lora.data.formats import exchange, read_conversations
from ba_lora.data.instruction import encode_conversations, encode_sample
from ba_lora.data.sources import read_table
from ba_lora.data.templates import TEMPLATES
from ba_lora.errors import UserError
from ba_lora.training.command_line import as_config, parse
from ba_lora.training.prepare_generator import prepare
from ba_lora.training.run import train
from tests.data.test_formats import messages, table

PLAIN = TEMPLATES["plain"]
USER, ANSWER = ("user", "q"), ("assistant", "a")


def read(row, fields=None, **options):
    return read_conversations(table([row]), fields, **options)[0][0]


def trained_text(tokenizer, conversation):
    sample = encode_sample(tokenizer, PLAIN, conversation, 512)
    return sample and tokenizer.decode([label for label in sample["labels"] if label != -100])


def system(text):
    return {"role": "system", "content": text}


# Used


FLAGS = [({"weight": 0}, {"weight": 1}), ({"train": False}, {"train": True}), ({"weight": 0.0, "train": None}, {})]


@pytest.mark.parametrize(("no", "yes"), FLAGS)
def test_an_answer_that_is_not_to_be_trained_is_context_only(tiny_tokenizer, no, yes):
    first, second = exchange("Is 7 even?", "Yes, it is."), exchange("Sure?", "No, it is odd.")
    whole = [first[0], first[1] | no, second[0], second[1] | yes]
    conversation = read({"messages": whole})
    assert trained_text(tiny_tokenizer, conversation) == " No, it is odd.</s>"
    plain = encode_sample(tiny_tokenizer, PLAIN, [*first, *second], 512)
    assert encode_sample(tiny_tokenizer, PLAIN, conversation, 512)["input_ids"] == plain["input_ids"]
    whole = [first[0], first[1] | yes, second[0], second[1] | no]
    assert trained_text(tiny_tokenizer, read({"conversations": whole})) == " Yes, it is.</s>"


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"weight": "0"}, {"train": "False"}])
def test_a_row_that_is_not_to_be_trained_trains_nothing(tiny_tokenizer, flag):
    rows = [{"question": "q", "answer": "bad"} | flag, {"question": "q", "answer": "good"}]
    conversations, _ = read_conversations(table(rows))
    samples, report = encode_conversations(tiny_tokenizer, PLAIN, conversations, 64)
    assert len(samples) == 1 and report["no_response"] == report["untrained"] == 1
    with pytest.raises(UserError, match=r"no sample has a response that is to be trained \(1 answers are not\)"):
        encode_conversations(tiny_tokenizer, PLAIN, conversations[:1], 64)
    everything = messages(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")) | flag
    assert trained_text(tiny_tokenizer, read(everything)) is None


def test_weights_of_one_change_no_sample(tiny_tokenizer):
    rows = [{"question": "q", "answer": "a", "weight": 1, "train": True}, {"question": "q", "answer": "a"}]
    assert read_conversations(table(rows))[0] == [exchange("q", "a")] * 2


@pytest.mark.parametrize(
    "bad", [{"weight": w} for w in (2, 0.5, -1, True, "x", [0])] + [{"train": t} for t in (0, 1, "no", [True])]
)
def test_a_weight_that_is_neither_0_nor_1_is_refused_by_its_place(bad):
    name = next(iter(bad))
    with pytest.raises(UserError, match=f"FILE, row 1, message 2: '{name}' is .*(0 or 1|true or false) is needed"):
        read({"messages": [exchange("q", "a")[0], exchange("q", "a")[1] | bad]})
    with pytest.raises(UserError, match=f"FILE, row 1: '{name}' is"):
        read({"question": "q", "answer": "a"} | bad)


@pytest.mark.parametrize("weight", [0, 0.0, "0", "0.0", Decimal("0.00")])
def test_a_weight_of_0_may_be_written_in_any_way(weight):
    assert read({"question": "q", "answer": "a", "weight": weight})[1]["train"] is False


def test_a_weight_on_what_is_never_trained_is_refused_where_it_asks_for_training():
    first, last = exchange("q", "a")
    assert read({"messages": [first | {"weight": 0}, last]}) == [first, last]
    with pytest.raises(UserError, match="message 1: weight or train asks to train on a message of the user"):
        read({"messages": [first | {"train": True}, last]})


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        messages(USER, ANSWER),
        messages(("system", " "), USER, ANSWER),
        messages(("system", "Be a pirate."), USER, ANSWER),
        {"instruction": "q", "input": "", "output": "a"},
        {"question": "q", "answer": "a"},
    ],
)
@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_column_is_the_conversations_system_message(row, name):
    assert read(row | {name: "Be a pirate."}) == [system("Be a pirate."), *exchange("q", "a")]


def test_an_empty_system_column_is_as_none():
    for empty in (None, "", " \n"):
        assert read({"question": "q", "answer": "a", "system": empty}) == exchange("q", "a")


def test_two_system_messages_and_one_that_is_no_text_are_refused():
    with pytest.raises(UserError, match="two system messages, 'x' and 'y'; keep one"):
        read(messages(("system", "x"), USER, ANSWER) | {"system": "y"})
    with pytest.raises(UserError, match="two system messages"):
        read({"question": "q", "answer": "a", "system": "x", "system_prompt": "y"})
    assert read(messages(("system", "x "), USER, ANSWER) | {"system": "x"})[0] == system("x ")
    with pytest.raises(UserError, match="row 1: 'system' is 5, a text is needed"):
        read({"question": "q", "answer": "a", "system": 5})


def test_alpacas_history_is_the_earlier_turns_and_is_trained(tiny_tokenizer):
    row = {"instruction": "q", "input": "", "output": "a", "system": "s", "history": [["q1", "a1"], ["q2", "a2"]]}
    expected = [system("s"), *exchange("q1", "a1"), *exchange("q2", "a2"), *exchange("q", "a")]
    assert read(row) == expected
    assert trained_text(tiny_tokenizer, expected) == " a1</s> a2</s> a</s>"
    assert read(messages(USER, ANSWER) | {"history": [["q1", "a1"]]}) == [*exchange("q1", "a1"), *exchange("q", "a")]
    assert read(messages(USER, ANSWER) | {"history": [["q", "a"]]}) == exchange("q", "a")  # already there
    flagged = [exchange("q1", "a1")[0], exchange("q1", "a1")[1] | {"weight": 0}, *exchange("q", "a")]
    assert [m["content"] for m in read({"messages": flagged, "history": [["q1", "a1"]]})] == ["q1", "a1", "q", "a"]
    assert read(row | {"history": [], "system": ""}) == exchange("q", "a")


@pytest.mark.parametrize(
    "bad", ["text", [["q"]], [["q", "a", "b"]], ["q", "a"], [["q", 5]], [{"role": "user"}], {"q": "a"}]
)
def test_a_history_that_is_no_list_of_pairs_is_refused(bad):
    with pytest.raises(UserError, match=r"row 1: 'history' holds .* a list of \[prompt, answer\] pairs is needed"):
        read({"instruction": "q", "output": "a", "history": bad})


# Ignored

PUBLISHED = {
    "MetaMathQA": ({"type": "GSM", "query": "q", "original_question": "o", "response": "a"}, "type, original_question"),
    "CodeFeedback": ({"query": "q", "answer": "a", "resource": "evol", "lang": "python"}, "resource, lang"),
    "WizardLM": ({"idx": "7", "conversations": messages(USER, ANSWER)["messages"]}, "idx"),
    "the published runs": ({"type": "python", "instruction": "q", "output": "a"}, "type"),
    "Alpaca": (
        {"instruction": "q", "input": "", "output": "a", "text": "Below: ### Instruction:\nq\n### Response:\na"},
        "text",
    ),
    "UltraChat": (
        {"prompt": "q", "prompt_id": "7", "messages": messages(USER, ANSWER)["messages"]},
        "prompt, prompt_id",
    ),
    "pandas": (
        {"__index_level_0__": 3, "Unnamed: 0": 3, "question": "q", "answer": "a"},
        "__index_level_0__, Unnamed: 0",
    ),
}


@pytest.mark.parametrize(("row", "left"), PUBLISHED.values(), ids=PUBLISHED)
def test_what_only_describes_a_row_is_left_out_and_named_once(row, left, caplog):
    assert read_conversations(table([row] * 3))[0] == [exchange("q", "a")] * 3
    assert caplog.text.count("not part of the conversations, and ignored: " + left) == 1


def test_nothing_is_said_where_nothing_is_left_out(caplog):
    read({"question": "q", "answer": "a", "tools": [], "images": None, "functions": "", "history": []})
    read(messages(USER, ANSWER))
    assert not caplog.text


# Rejected

LOST = {
    "tools": [{"name": "search"}],
    "tool_calls": [{"id": 1}],
    "functions": "search(x)",
    "images": ["cat.png"],
    "chosen": "a",
    "rejected": "b",
    "prefix": "def f():",
    "context": "Long ago",
    "label": False,
    "hint": "Think.",
    "input": "more",
}


@pytest.mark.parametrize(("name", "value"), LOST.items(), ids=LOST)
@pytest.mark.parametrize("row", [{"question": "q", "answer": "a"}, messages(USER, ANSWER)], ids=["pair", "messages"])
def test_a_column_that_would_be_lost_is_refused_until_it_is_named(row, name, value):
    row = row | {name: value}
    with pytest.raises(
        UserError, match=f"^FILE, row 1: the column '{name}' .*name it with --ignore_columns {name}"
    ) as error:
        read(row)
    assert "\n" not in str(error.value)
    assert read(row, ignore=[name]) == exchange("q", "a")
    good = {"question": "q", "answer": "a"}
    rows = [row if "question" in row else good | {name: value}, good]
    assert read_conversations(table(rows), skip_bad=True)[1] == {"read": 2, "skipped": 1}


SPELLINGS = {
    "System": "s",
    "Weight": 0,
    "History": [["q1", "a1"]],
    "system message": "s",
    "chat-history": [["q1", "a1"]],
    "toolCalls": [{"id": 1}],
    "sample_weight": 0,
    "input": "more",
}


@pytest.mark.parametrize(("name", "value"), SPELLINGS.items(), ids=SPELLINGS)
def test_another_spelling_of_what_carries_meaning_is_refused_where_fields_are_named_too(name, value):
    row = {"p": "q", "r": "a", name: value}
    with pytest.raises(UserError, match=f"the column '{name}' .* would be lost"):
        read(row, ["p", "r"])
    assert read(row, ["p", "r"], ignore=[name]) == exchange("q", "a")


def test_all_columns_that_would_be_lost_are_named_at_once():
    row = {"question": "q", "answer": "a", "tools": ["x"], "two words": "y", "id": 7, "hint": "z"}
    with pytest.raises(UserError) as error:
        read(row)
    assert "'tools' (['x']) would be lost, and so would 'two words', 'hint'" in str(error.value)
    assert "--ignore_columns tools 'two words' hint;" in str(error.value)
    assert read(row, ignore=["tools", "two words", "hint"]) == exchange("q", "a")


def test_what_is_empty_inside_counts_as_absent():
    empty = ("[]", "{}", " [] ", [None], [[]], {"name": None}, [{"name": None, "arguments": []}], [["", ""]])
    for value in empty:
        for name in ("tools", "history", "hint"):
            assert read({"question": "q", "answer": "a", name: value}) == exchange("q", "a"), (name, value)
    deep = None
    for _ in range(100_000):
        deep = [deep]
    assert read({"question": "q", "answer": "a", "tools": deep}) == exchange("q", "a")
    for value in ([0], {"name": False}, "[1]", [None, {"name": "f"}]):
        with pytest.raises(UserError, match="the column 'tools'"):
            read({"question": "q", "answer": "a", "tools": value})


def test_a_name_of_several_lines_is_told_in_one():
    with pytest.raises(UserError, match=r"row 1: the column 'a\\nb' \('x'\) would be lost") as error:
        read({"question": "q", "answer": "a", "a\nb": "x"})
    assert "\n" not in str(error.value)


KEYS = {
    "tool_calls": [{"id": 1}],
    "function_call": {"name": "f"},
    "name": "Ann",
    "reasoning_content": "Hm.",
    "images": ["x"],
    "loss": False,
}


@pytest.mark.parametrize(("name", "value"), KEYS.items(), ids=KEYS)
def test_a_key_of_a_message_that_would_be_lost_is_refused_until_it_is_named(name, value):
    first, last = exchange("q", "a")
    with pytest.raises(UserError, match=f"row 1, message 2: the column '{name}' .*--ignore_columns {name}"):
        read({"messages": [first, last | {name: value}]})
    assert read({"messages": [first, last | {name: value}]}, ignore=[name]) == [first, last]
    assert read({"messages": [first, last | {name: None, "id": 5, "refusal": None}]}) == [first, last]


def test_named_fields_leave_other_columns_out_but_not_what_carries_meaning(caplog):
    row = {"p": "q", "r": "a", "note": "x", "question": "?"}
    assert read(row, ["p", "r"]) == exchange("q", "a") and "ignored: note, question" in caplog.text
    with pytest.raises(UserError, match="the column 'tools'"):
        read(row | {"tools": ["x"]}, ["p", "r"])
    assert read(row | {"system": "s"}, ["p", "r"]) == [system("s"), *exchange("q", "a")]
    assert read({"system": "q", "train": "a"}, ["system", "train"]) == exchange("q", "a")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": ["user"], "content": "q"}, r"the role is \['user'\], one of"),
        ({"role": {"a": 1}, "content": "q"}, "the role is {'a': 1}"),
        ({"role": 5, "content": "q"}, "the role is 5"),
        ({"content": "q"}, "the role is None"),
        ({"role": "developer", "content": "q"}, "the role is 'developer'"),
        (
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            r"the content is \[{'type': 'text'.*a text is needed",
        ),
        ({"role": "user", "from": "gpt", "content": "q"}, "role is 'user' and from 'gpt'; keep one of them"),
        ({"role": "user", "content": "q", "value": "other"}, "content is 'q' and value 'other'"),
    ],
)
def test_a_message_that_is_none_is_named(message, said):
    with pytest.raises(UserError, match=f"FILE, row 1, message 1: {said}"):
        read({"messages": [message, exchange("q", "a")[1]]})


def test_columns_to_ignore_are_an_option_that_is_recorded(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a", "tools": ["x"], "hint": "h"}\n' * 2)
    words = ["--output_dir", str(tmp_path / "run"), "--data", str(tmp_path / "rows.jsonl")]
    with pytest.raises(UserError, match="rows.jsonl, row 1: the column 'tools'"):
        train(parse(words))
    assert not (tmp_path / "run").exists()
    arguments = parse([*words, "--ignore_columns", "tools", "hint"])
    assert as_config(arguments)["ignore_columns"] == ["tools", "hint"]
    assert len(prepare(arguments, arguments.objective()).samples) == 2
    with pytest.raises(UserError, match="--ignore_columns answer: this is where the conversation is read from"):
        read_conversations(read_table(str(tmp_path / "rows.jsonl")), ignore=["answer"])
    with pytest.raises(UserError, match="--ignore_columns is an option of generation"):
        parse([*words, "--task", "cola", "--model", "x", "--ignore_columns", "id"])
