"""From a file to token ids and masks: what is trained is what the evaluation sends, then the response, then the end."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from ba_lora.data.cache import load_samples
from ba_lora.data.collator import PadRight
from ba_lora.data.instruction import (
    TEMPLATES,
    encode_pairs,
    encode_prompt,
    encode_sample,
    read_pairs,
    read_records,
    template_of,
)
from ba_lora.errors import UserError
from ba_lora.files import write_json
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
    sample = encode_sample(tokenizer, template, "What is 5 + 4?", response, 512)
    prompt = encode_prompt(tokenizer, template, "What is 5 + 4?")
    answer = tokenizer(template.separator + response, add_special_tokens=False)["input_ids"]
    assert sample["input_ids"] == prompt + answer + [tokenizer.eos_token_id]
    assert sample["labels"] == [-100] * len(prompt) + answer + [tokenizer.eos_token_id]


def test_eos_token_is_trained_and_seen_when_pad_equals_eos(tokenizer):
    tokenizer = with_pad_equal_to_eos(tokenizer)
    samples = [encode_sample(tokenizer, PLAIN, "Hi", text, 64) for text in ("one", "one two three four")]
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
    plain = encode_sample(tokenizer, PLAIN, "Hi", "there", 64)["input_ids"]
    assert encode_sample(adds, PLAIN, "Hi", "there", 64)["input_ids"] == [bos, *plain]


def test_samples_without_a_response_are_counted_and_left_out(tokenizer):
    pairs = [("a", "fine"), ("b", ""), ("c", "  "), ("long " * 200, "cut away"), ("d", "x " * 400)]
    samples, report = encode_pairs(tokenizer, PLAIN, pairs, max_length=64)
    assert len(samples) == 2
    assert {key: report[key] for key in ("read", "kept", "no_response", "truncated")} == {
        "read": 5,
        "kept": 2,
        "no_response": 3,
        "truncated": 1,
    }
    assert samples[0]["input_ids"][-1] == tokenizer.eos_token_id != samples[1]["input_ids"][-1]
    assert len(samples[1]["input_ids"]) == 64
    with pytest.raises(UserError, match="no sample has a response within max_length 8"):
        encode_pairs(tokenizer, PLAIN, pairs[3:4], max_length=8)


def test_the_data_hash_follows_content_and_order(tokenizer):
    def hashed(pairs):
        return encode_pairs(tokenizer, PLAIN, pairs, 64)[1]["hash"]

    assert hashed([("a", "1"), ("b", "2")]) == hashed([("a", "1"), ("b", "2")])
    assert hashed([("a", "1"), ("b", "2")]) != hashed([("b", "2"), ("a", "1")])


def test_samples_are_encoded_once_for_the_same_content(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path))
    calls = []

    def spy(*arguments):
        calls.append(arguments)
        return encode_pairs(*arguments)

    monkeypatch.setattr("ba_lora.data.cache.encode_pairs", spy)
    pairs = [("a", "1"), ("b", "")]
    first, report = load_samples(tokenizer, PLAIN, pairs, 200)
    again, report_again = load_samples(tokenizer, PLAIN, list(pairs), 200)
    assert len(calls) == 1 and list(first) == list(again) and report == report_again
    assert list(first) == [encode_sample(tokenizer, PLAIN, "a", "1", 200)] and report["no_response"] == 1
    for changed in [(TEMPLATES["alpaca"], pairs, 200), (PLAIN, [("a", "2")], 200), (PLAIN, pairs, 63)]:
        load_samples(tokenizer, *changed)
    assert len(calls) == 4


ROWS = [{"question": f"q{i}", "answer": f"a{i} #### {i}", "extra": i} for i in range(5)]


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_every_format_gives_the_same_pairs(tmp_path, ending):
    path = write(tmp_path / f"rows.{ending}")
    assert read_pairs(path) == [(row["question"], row["answer"]) for row in ROWS]
    assert read_pairs(path, limit=2) == [(row["question"], row["answer"]) for row in ROWS[:2]]
    assert read_pairs(path, fields=("answer", "question"), limit=1) == [(ROWS[0]["answer"], "q0")]


def test_generated_problems_are_read_like_a_file():
    pairs = read_pairs("tinymath:train", limit=3)
    assert len(pairs) == 3 and all("The answer is: " in response for _, response in pairs)


def test_bad_files_are_named_with_line_and_remedy(tmp_path):
    good = write(tmp_path / "good.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    uneven = write(tmp_path / "uneven.jsonl", [*ROWS[:1], {"question": "x"}])
    number = write(tmp_path / "number.jsonl", [{"question": "x", "answer": 5}])
    for path, fields, message in [
        (tmp_path / "none.jsonl", None, r"none.jsonl does not exist"),
        (broken, None, r"broken.jsonl, line 2: not valid JSON"),
        (empty, None, r"empty.jsonl has no rows"),
        (good, ("prompt", "answer"), r"row 1 has no field 'prompt' \(it has: question, answer, extra\)"),
        (uneven, None, r"row 2 has no field 'answer' \(it has: question\)"),
        (number, None, r"row 1: field 'answer' is 5, a text is needed"),
        (tmp_path, None, "does not exist"),
        ("tinymath:trian", None, "trian"),
    ]:
        with pytest.raises((UserError, ValueError), match=message):
            read_pairs(str(path), fields)
    with pytest.raises(UserError, match="has the fields x, y; name two of them with --fields"):
        read_pairs(write(tmp_path / "other.jsonl", [{"x": "1", "y": "2"}]))
    with pytest.raises(UserError, match="a list of objects is needed"):
        (tmp_path / "dict.json").write_text("{}")
        read_records(tmp_path / "dict.json")


def test_the_recorded_template_is_found_from_run_and_adapter_folder(tmp_path):
    write_json(tmp_path / "run.json", {"template": {"name": "x", "prompt": "<{instruction}>", "separator": "|"}})
    (tmp_path / "adapter").mkdir()
    assert template_of(tmp_path) == template_of(tmp_path / "adapter")
    assert template_of(tmp_path).render("hi") == "<hi>"
    assert template_of(tmp_path / "adapter" / "elsewhere" / "deep") is None
