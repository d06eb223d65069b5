"""Rows from files and folders: every kind of file and every layout of the hub gives the same rows; errors name the problem."""

import json

import pytest

from ba_lora.data.sources import read_table
from ba_lora.errors import UserError
from tests.data.tables import write_table

ROWS = [
    {"question": f"q{i}", "answer": text, "extra": str(i)}
    for i, text in enumerate(["a #### 1", "007", 'quoted "text", naïve 数学', "two\nlines ", "NA", " leading"])
]
OTHER = [{"question": "test", "answer": "another split", "more": 1}] * 2


def write(path, rows=ROWS):
    return str(write_table(path, rows))


def rows_of(*words, **options):
    return [row for _, row in read_table(*words, **options).rows]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "lines.json", "list.json", "rows.parquet", "rows.csv"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    path = write(tmp_path / name)
    assert rows_of(path) == ROWS and read_table(path).columns == ["question", "answer", "extra"]
    assert rows_of(path, limit=2) == ROWS[:2]
    assert rows_of("someone/somewhere:part", path) == ROWS  # a local copy that is a file


LAYOUTS = {
    "a folder a task": ({"metamath/train.json": ROWS, "metamath/test.json": OTHER, "python/train.json": OTHER}, "metamath"),
    "a folder a config": ({"main/train-00000-of-00001.parquet": ROWS, "socratic/train-00000-of-00001.parquet": OTHER}, "main"),
    "shards": ({"data/train-00000-of-00002.parquet": ROWS[:4], "data/train-00001-of-00002.parquet": ROWS[4:]}, None),
    "splits": ({"train.jsonl": ROWS, "test.jsonl": OTHER}, None),
    "one file": ({"MetaMathQA-395K.json": ROWS}, None),
    "csv": ({"data/train.csv": ROWS}, None),
}  # fmt: skip


@pytest.mark.parametrize(("files", "part"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_the_hub_gives_the_same_rows(tmp_path, files, part):
    for name, rows in files.items():
        write(tmp_path / "copy" / name, rows)
    (tmp_path / "copy" / "README.md").write_text("# A data set\n")
    suffix = f":{part}" if part else ""
    assert rows_of(f"someone/name{suffix}", str(tmp_path / "copy")) == ROWS  # --data with --data_path
    assert rows_of(f"{tmp_path / 'copy'}{suffix}") == ROWS  # the folder as --data


def test_another_split_is_read_by_name(tmp_path):
    write(tmp_path / "train.jsonl"), write(tmp_path / "test.jsonl", OTHER)
    assert rows_of(str(tmp_path), split="test") == OTHER


def test_a_readme_may_name_the_files_of_a_config(tmp_path):
    write(tmp_path / "files" / "first.jsonl"), write(tmp_path / "files" / "second.jsonl", OTHER)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: files/first.jsonl\n"
        "- config_name: two\n  data_files: files/second.jsonl\n---\n"
    )
    assert rows_of("openai/gsm8k:one", str(tmp_path)) == ROWS
    assert rows_of("openai/gsm8k:two", str(tmp_path)) == OTHER


def test_rows_keep_their_numbers_and_a_shuffle_comes_before_the_limit(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"x": str(number)} for number in range(1, 101)])
    plain = read_table(path, limit=5).rows
    assert plain == [(number, {"x": str(number)}) for number in range(1, 6)]
    shuffled = read_table(path, limit=5, shuffle_seed=1).rows
    assert shuffled == read_table(path, limit=5, shuffle_seed=1).rows != read_table(path, limit=5, shuffle_seed=2).rows
    assert all(row == {"x": str(number)} for number, row in shuffled) and max(shuffled)[0] > 5
    assert sorted(read_table(path, shuffle_seed=1).rows) == read_table(path).rows


def test_generated_problems_are_read_like_a_file():
    table = read_table("tinymath:train", limit=3)
    assert len(table.rows) == 3 and all("The answer is: " in row["answer"] for _, row in table.rows)
    assert table.rows == read_table("tinymath:train:0", limit=3).rows != read_table("tinymath:train:1", limit=3).rows


def bad_files(folder):
    """(file or name, the error's text)."""
    good = json.dumps(ROWS[0]) + "\n"
    for name, text in {
        "broken.jsonl": good + '{"question": \n',
        "number.jsonl": good + "5\n",
        "array.jsonl": good + "[1, 2]\n",
        "broken.json": '[{"question": "a"},',
        "object.json": "{}",
        "empty.jsonl": "",
        "blank.jsonl": "\n \n",
        "empty.json": "[]",
        "empty.csv": "",
        "header.csv": "question,answer\n",
        "wrong.parquet": good,
        "rows.txt": good,
    }.items():
        (folder / name).write_text(text)
    (folder / "latin.jsonl").write_bytes('{"question": "é"}\n'.encode("latin-1"))
    yield "none.jsonl", "data file none.jsonl does not exist"
    yield str(folder / "none"), "does not exist"
    yield "broken.jsonl", r"broken.jsonl, line 2: not valid JSON"
    yield "number.jsonl", r"number.jsonl, line 2: a int, an object with fields is needed"
    yield "array.jsonl", r"array.jsonl, line 2: a list, an object with fields is needed"
    yield "broken.json", r"broken.json is not valid JSON"
    for name in ("object.json", "empty.jsonl", "blank.jsonl", "empty.json", "empty.csv", "header.csv"):
        yield name, rf"{name} has no rows"
    yield "wrong.parquet", "wrong.parquet is not a Parquet file"
    yield "rows.txt", r"ends in '.txt'; .jsonl, .ndjson, .json, .parquet, .csv can be read"
    yield "latin.jsonl", "is not UTF-8 text; convert the file"
    yield "someone/never", "the hub did not give it .* give its file or folder .--data_path"
    yield "someone/never:main", "the hub did not give it"
    yield "tinymath:trian", "tinymath split 'trian' is not known, did you mean 'train'"
    yield "tinymath:train:x", "the seed 'x' is not an integer"


def test_what_cannot_be_read_ends_in_one_line_that_names_it(tmp_path):
    for name, message in bad_files(tmp_path):
        path = str(tmp_path / name) if (tmp_path / name).exists() else name
        with pytest.raises(UserError, match=message) as error:
            read_table(path)
        assert "\n" not in str(error.value), name


def test_a_field_that_changes_its_type_far_down_a_file_is_named_with_its_lines(tmp_path):
    """`datasets` fixes the types from the first 10 MB."""
    rows = [{"question": "x" * 10_000, "answer": [number]} for number in range(1_100)]
    path = write(tmp_path / "mixed.jsonl", [*rows, {"question": "q", "answer": "text"}])
    with pytest.raises(UserError, match="line 1101: field 'answer' is a str, and a list in .*line 1; fix one of them"):
        read_table(path)


def test_a_folder_that_does_not_say_which_files_are_meant_is_refused(tmp_path):
    write(tmp_path / "many" / "metamath" / "train.json"), write(tmp_path / "many" / "python" / "train.json")
    write(tmp_path / "mixed" / "train.json"), write(tmp_path / "mixed" / "train.csv")
    (tmp_path / "none").mkdir()
    for name, split, message in [
        ("many", "train", r"holds metamath, python; name one of them, as in --data OWNER/NAME:metamath"),
        ("many:conversation", "train", "has neither a folder nor a config 'conversation'"),
        ("many:python", "tset", "split of .*python, 'tset' is not known .one of: train"),
        ("mixed", "train", r"holds train files of several kinds \(.csv, .json\)"),
        ("none", "train", "holds no data files"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            read_table(f"{tmp_path / name}", split=split)
        assert "\n" not in str(error.value), name


@pytest.mark.parametrize("other", ["train-1.jsonl.gz", "train-1.tsv", "train-1.JSONL", "train-1.arrow"])
def test_a_part_that_cannot_be_read_is_named_and_not_left_out(tmp_path, other):
    write(tmp_path / "train-0.jsonl")
    (tmp_path / other).write_text("x")
    with pytest.raises(UserError, match=f"holds {other}, which cannot be read"):
        read_table(str(tmp_path))
    (tmp_path / other).rename(tmp_path / other.replace("train", "test"))  # of another split
    assert rows_of(str(tmp_path)) == ROWS


def test_parts_that_are_missing_are_counted_in_a_warning(tmp_path, caplog):
    write(tmp_path / "train-00001-of-00003.jsonl"), write(tmp_path / "train-00002-of-00003.jsonl")
    assert rows_of(str(tmp_path)) == ROWS * 2 and "only 2 of 3 parts are here" in caplog.text
    write(tmp_path / "train-00000-of-00003.jsonl"), caplog.clear()
    assert rows_of(str(tmp_path)) == ROWS * 3 and not caplog.text


def test_a_local_copy_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_table("meta-math/MetaMathQA", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["y" * 40_000, "a/" + "y" * 300 + "/c", "a\0b", "y" * 300 + ":part", "a\nb/c/d"])
def test_a_name_that_no_path_can_be_is_refused_in_one_line(name):
    for options in ({"data": name}, {"data": "d", "path": name}):
        with pytest.raises(UserError) as caught:
            read_table(**options)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
