"""Evaluation reads files like training: ids are kept as they are, and a line that cannot be read is named."""

import datetime
import gzip
import json
from decimal import Decimal

import pyarrow.parquet
import pytest

from ba_lora.errors import UserError
from eval import gsm8k, hendrycks_math, humaneval, mbpp
from eval.harness.lines import read_lines
from eval.judging import questions as mt_bench_data


def test_ids_are_compared_as_the_texts_that_stand_in_the_file(tmp_path):
    ids = [2**64 + 1, 2**64 + 2, "2024-05-01", "2024-05-01T00:00:00", "007", 7, "1e5"]
    rows = [{"id": key, "question": "What is 1 + 1?", "answer": "#### 2"} for key in ids]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert [problem["id"] for problem in gsm8k.load_problems(str(tmp_path / "data.jsonl"))] == ids[:2]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row | {"id": str(row["id"])}) + "\n" for row in rows))
    assert [problem["id"] for problem in gsm8k.load_problems(str(tmp_path / "text.jsonl"))] == [str(key) for key in ids]
    (tmp_path / "made.jsonl").write_text(
        "".join(json.dumps({"id": str(key), "completion": "2", "reference": "2"}) + "\n" for key in ids)
    )
    words = ["--rescore", str(tmp_path / "made.jsonl"), "--data", str(tmp_path / "text.jsonl")]
    assert gsm8k.main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert (score["n"], score["missing"], score["score"]) == (7, 0, 1.0)


def test_a_date_as_an_id_of_a_parquet_file_is_its_text(tmp_path):
    rows = [{"id": datetime.date(2024, 5, day), "question": "q", "answer": "2"} for day in (1, 2)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    problems = gsm8k.load_problems(str(tmp_path / "data.parquet"))
    assert [problem["id"] for problem in problems] == ["2024-05-01", "2024-05-02"]


ANSWERS = [datetime.date(2024, 5, 1), datetime.datetime(2024, 5, 1, 12, 30), Decimal("4.50")]


@pytest.mark.parametrize("value", ANSWERS, ids=["date", "time", "decimal"])
def test_what_only_parquet_has_can_be_an_id_or_an_answer_and_is_written_as_its_text(tmp_path, value):
    rows = {
        gsm8k.load_problems: {"id": value, "question": "q", "answer": value},
        hendrycks_math.load_problems: {"id": value, "problem": "q", "answer": value, "level": value},
        mbpp.load_tasks: {"task_id": value, "text": "t", "code": "def f(): 0", "test_list": ["assert f() is None"]},
        mt_bench_data.load_bench: {"question_id": value, "category": "writing", "turns": ["a", "b"]},
    }
    for load, row in rows.items():
        if load is mt_bench_data.load_bench:
            loaded = mt_bench_data._questions([("FILE, row 1", row)], {})  # without the package's prompts
            key = loaded[0]["id"]
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "data.parquet")
            loaded = load(str(tmp_path / "data.parquet"))
            key = loaded[0]["id"] if isinstance(loaded[0], dict) else loaded[0].id
        assert key == str(value)
        json.dumps(loaded)


def test_a_byte_order_mark_is_no_part_of_a_file_of_completions(tmp_path):
    (tmp_path / "lines.jsonl").write_bytes(b'\xef\xbb\xbf{"id": 0, "completion": "a"}\r\n')
    assert read_lines(tmp_path / "lines.jsonl", ("id", "completion")) == [{"id": 0, "completion": "a"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "line 2: not valid JSON .nested too deeply"),
        (
            '{"id": 1, "completion": ' + "7" * 5000 + "}",
            "line 2: not valid JSON .a whole number of more than 4300 digits",
        ),
        ('{"id": 1, "id": 2, "completion": "x"}', "line 2: not valid JSON .the name 'id' appears twice"),
        ('{"id": NaN, "completion": "x"}', "line 2: not valid JSON .NaN is not a JSON number"),
        ("null", "line 2: a null, an object with id, completion is needed"),
    ],
    ids=["nested", "digits", "twice", "NaN", "null"],
)
def test_a_line_of_completions_that_cannot_be_held_is_named(tmp_path, text, message):
    (tmp_path / "lines.jsonl").write_text('{"id": 0, "completion": "half \\ud83d"}\n' + text + "\n")
    with pytest.raises(UserError, match=message) as error:
        read_lines(tmp_path / "lines.jsonl", ("id", "completion"))
    assert "\n" not in str(error.value)


def test_a_completion_may_hold_half_a_character(tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"id": 0, "completion": "half \\ud83d"}\n')
    (line,) = read_lines(tmp_path / "lines.jsonl", ("id", "completion"))
    assert line["completion"] == "half \ud83d"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("null", "line 2: a null, an object"),
        ('{"task_id": NaN}', "line 2: .*NaN"),
        ("[" * 99_999, "line 2: .*nested too deeply"),
    ],
    ids=["null", "NaN", "nested"],
)
def test_a_compressed_line_that_is_no_task_is_named(tmp_path, line, message):
    with gzip.open(tmp_path / "data.jsonl.gz", "wt") as file:
        file.write(json.dumps({"task_id": "x", "prompt": "p", "entry_point": "e", "test": "t"}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        humaneval.load_tasks(str(tmp_path / "data.jsonl.gz"))
