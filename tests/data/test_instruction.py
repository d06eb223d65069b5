"""From conversations to token ids and masks: training uses the prompt that the evaluation sends, then the response, then the
end."""

import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
from transformers import AutoTokenizer

from ba_lora.data.cache import load_samples
from ba_lora.data.collator import PadRight
from ba_lora.data.formats import exchange
from ba_lora.data.instruction import encode_conversations, encode_prompt, encode_sample
from ba_lora.data.templates import TEMPLATES
from ba_lora.errors import UserError
from ba_lora.tiny import MODEL_DIR

PLAIN = TEMPLATES["plain"]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def with_pad_equal_to_eos(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize(
    "response", ["5 + 4 = 9. The answer is: 9", "naïve – 数学\nprint('x')", " leading space", "</s> in the text"]
)
def test_training_ids_are_the_evaluations_prompt_ids_then_the_response_then_the_end(tokenizer, template, response):
    sample = encode_sample(tokenizer, template, exchange("What is 5 + 4?", response), 512)
    prompt = encode_prompt(tokenizer, template, "What is 5 + 4?")
    answer = tokenizer(template.separator + response, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert sample["input_ids"] == prompt + answer + [tokenizer.eos_token_id]
    assert sample["labels"] == [-100] * len(prompt) + answer + [tokenizer.eos_token_id]


def test_eos_token_is_trained_and_seen_when_pad_equals_eos(tokenizer):
    tokenizer = with_pad_equal_to_eos(tokenizer)
    samples = [encode_sample(tokenizer, PLAIN, exchange("Hi", text), 64) for text in ("one", "one two three four")]
    batch = PadRight(tokenizer)(samples)
    for row, sample in enumerate(samples):
        length = len(sample["input_ids"])
        assert batch["labels"][row, length - 1] == tokenizer.eos_token_id
        assert batch["attention_mask"][row].sum() == length
        assert (batch["labels"][row, length:] == -100).all()
    assert len(samples[0]["input_ids"]) < len(samples[1]["input_ids"])


def test_the_first_label_is_never_trained(tokenizer):
    batch = PadRight(tokenizer)([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}])
    assert batch["labels"].tolist() == [[-100, 6, 7]]


def test_a_beginning_token_stands_once_and_only_in_front(tokenizer):
    from tokenizers.processors import TemplateProcessing

    adds = AutoTokenizer.from_pretrained(MODEL_DIR)
    bos, eos = adds.bos_token_id, adds.eos_token_id
    adds.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    plain = encode_sample(tokenizer, PLAIN, exchange("Hi", "there"), 64)["input_ids"]
    assert encode_sample(adds, PLAIN, exchange("Hi", "there"), 64)["input_ids"] == [bos, *plain]


def test_samples_without_a_response_are_counted_and_left_out(tokenizer):
    pairs = [
        exchange(*pair)
        for pair in [("a", "fine"), ("b", ""), ("c", "  "), ("long " * 200, "cut away"), ("d", "x " * 400)]
    ]
    samples, report = encode_conversations(tokenizer, PLAIN, pairs, max_length=64)
    assert len(samples) == 2
    assert {key: report[key] for key in ("kept", "no_response", "truncated")} == {
        "kept": 2,
        "no_response": 3,
        "truncated": 1,
    }
    assert samples[0]["input_ids"][-1] == tokenizer.eos_token_id != samples[1]["input_ids"][-1]
    assert len(samples[1]["input_ids"]) == 64
    with pytest.raises(UserError, match="no sample has a response within max_length 8"):
        encode_conversations(tokenizer, PLAIN, pairs[3:4], max_length=8)


def test_the_data_hash_follows_content_and_order(tokenizer):
    def hashed(pairs):
        return encode_conversations(tokenizer, PLAIN, [exchange(*pair) for pair in pairs], 64)[1]["hash"]

    assert hashed([("a", "1"), ("b", "2")]) == hashed([("a", "1"), ("b", "2")])
    assert hashed([("a", "1"), ("b", "2")]) != hashed([("b", "2"), ("a", "1")])


def test_samples_are_encoded_once_for_the_same_content(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path))
    calls = []

    def spy(*arguments):
        calls.append(arguments)
        return encode_conversations(*arguments)

    monkeypatch.setattr("ba_lora.data.cache.encode_conversations", spy)
    pairs = [exchange("a", "1"), exchange("b", "")]
    first, report = load_samples(tokenizer, PLAIN, pairs, 200)
    again, report_again = load_samples(tokenizer, PLAIN, list(pairs), 200)
    assert len(calls) == 1 and list(first) == list(again) and report == report_again
    assert list(first) == [encode_sample(tokenizer, PLAIN, exchange("a", "1"), 200)] and report["no_response"] == 1
    for changed in [(TEMPLATES["alpaca"], pairs, 200), (PLAIN, [exchange("a", "2")], 200), (PLAIN, pairs, 63)]:
        load_samples(tokenizer, *changed)
    assert len(calls) == 4


def test_of_several_that_ask_at_once_one_encodes_and_the_others_read(tokenizer, tmp_path, monkeypatch):
    """The lock is on a file, so processes wait for each other as the threads do here."""
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path))
    calls = []

    def slow(*arguments):
        calls.append(arguments)
        time.sleep(0.3)
        return encode_conversations(*arguments)

    monkeypatch.setattr("ba_lora.data.cache.encode_conversations", slow)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(load_samples, tokenizer, PLAIN, [exchange("a", "1")], 64) for _ in range(3)]
    assert [len(future.result()[0]) for future in asked] == [1, 1, 1] and len(calls) == 1


def conversation(*texts, system=None):
    roles = ["user", "assistant"] * len(texts)
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_every_turn_is_written_as_recorded_and_every_answer_trained(tokenizer, template):
    sample = encode_sample(tokenizer, template, conversation("q1", "a1", "q2", "a2", system="Be kind."), 512)
    text = tokenizer.decode(sample["input_ids"])
    first, later = template.render("Be kind.\n\nq1"), template.render_later("q2")
    assert text == f"{first}{template.separator}a1</s>{later}{template.separator}a2</s>"
    trained = [token for token, label in zip(sample["input_ids"], sample["labels"], strict=True) if label == token]
    assert tokenizer.decode(trained) == f"{template.separator}a1</s>{template.separator}a2</s>"


def test_an_empty_system_message_is_as_none(tokenizer):
    plain = encode_sample(tokenizer, PLAIN, conversation("q", "a"), 64)
    assert encode_sample(tokenizer, PLAIN, conversation("q", "a", system=" "), 64) == plain


def test_an_answer_of_white_space_is_context_only(tokenizer):
    sample = encode_sample(tokenizer, PLAIN, conversation("q", " ", "r", "a"), 64)
    trained = [label for label in sample["labels"] if label != -100]
    assert tokenizer.decode(trained) == " a</s>"
    assert encode_sample(tokenizer, PLAIN, conversation("q", " ", "r", "\n"), 64) is None


def test_a_long_conversation_loses_its_end_and_is_counted(tokenizer):
    long = conversation("q", "a", "r " * 100, "never seen")
    (sample,), report = encode_conversations(tokenizer, PLAIN, [long], max_length=32)
    assert len(sample["input_ids"]) == 32 and report["truncated"] == 1
    trained = [label for label in sample["labels"] if label != -100]
    assert tokenizer.decode(trained) == " a</s>"


def test_a_conversation_that_the_assistant_ends_has_no_prompt(tokenizer):
    with pytest.raises(UserError, match="ends with the assistant; there is nothing to answer"):
        encode_prompt(tokenizer, PLAIN, conversation("q", "a"))


def test_a_tokenizer_without_an_end_of_sequence_is_refused(tokenizer):
    endless = deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        encode_sample(endless, PLAIN, exchange("q", "a"), 64)
