"""Files are read exactly: every value keeps its type, every row its columns, and errors name the broken line."""

import gzip
import json
import os
from datetime import datetime

import pyarrow
import pyarrow.parquet
import pytest

from ba_lora.data import readers
from ba_lora.data.formats import exchange, read_conversations
from ba_lora.data.sources import read_table
from ba_lora.errors import UserError


def rows_of(path, **options):
    return [row for _, row in read_table(str(path), **options).rows]


def fails(path, message):
    with pytest.raises(UserError, match=message) as error:
        read_table(str(path))
    assert "\n" not in str(error.value) and path.name in str(error.value)


# JSON

DATES = ["2024-05-02", "2024-05-02T10:00:00", "12:30:00", "2024-05-02T10:00:00.123Z", "1999-12-31 23:59"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_column_of_nothing_but_dates_stays_text(tmp_path, name):
    rows = [{"id": text, "question": "When?", "answer": text} for text in DATES]
    write(tmp_path / name, rows)
    assert rows_of(tmp_path / name) == rows
    assert read_conversations(read_table(str(tmp_path / name)))[0] == [exchange("When?", text) for text in DATES]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_whole_numbers_keep_all_their_digits_and_floats_stay_floats(tmp_path, name):
    numbers = [2**63 - 1, 2**63, 2**64 + 1, -(2**70), 10**30, 0, 1.5, 1.0, 1e300]
    write(tmp_path / name, [{"id": number} for number in numbers])
    read = [row["id"] for row in rows_of(tmp_path / name)]
    assert read == numbers and [type(value) for value in read] == [type(value) for value in numbers]


def test_rows_may_have_different_types_of_numbers_and_texts(tmp_path):
    rows = [{"id": key} for key in (1, "1", 1.5, True, "x")] + [{"other": 1}]
    assert rows_of(write(tmp_path / "rows.jsonl", rows)) == rows


def write(path, rows):
    path.write_text(
        json.dumps(rows, indent=1) if path.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows)
    )
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[null, {"a": "b"}]', "entry 1: a null, an object with fields is needed"),
        ('[{"a": "b"}, null]', "entry 2: a null, an object"),
        ('[5, {"a": "b"}]', "entry 1: a int, an object"),
        ('[NaN, {"a": "b"}]', "entry 1: NaN is not a JSON number"),
        ('["a", "b"]', "entry 1: a str, an object"),
        ('[[], {"a": "b"}]', "entry 1: a list, an object"),
        ('[{"a": "b"} {"a": "c"}]', "entry 2: no comma before it"),
        ('[{"a": "b"}', "the list is not closed"),
        ('[{"a": "b"}] [1]', "there is more after its end"),
        ('[{"a": "b"},]', "entry 2: Expecting value"),
        ('[{"a": "b", "c": "' + "x" * 3_000_000, "entry 1: Unterminated string"),
        ('{\n "a": "b"\n}\n{\n "a": "c"\n}', "there is more after its end"),
    ],
)
def test_a_json_list_that_is_broken_is_named_by_its_entry(tmp_path, text, message):
    (tmp_path / "list.json").write_text(text)
    fails(tmp_path / "list.json", message)


LINES = {
    "null": ("null", "a null, an object"),
    "NaN": ('{"a": NaN}', "NaN is not a JSON number; write null"),
    "infinity": ('{"a": [-Infinity]}', "-Infinity is not a JSON number"),
    "a name twice": ('{"a": "b", "a": "c"}', "the name 'a' appears twice in one object"),
    "a name twice inside": ('{"a": {"role": "x", "role": "y"}}', "the name 'role' appears twice"),
    "very many digits": ('{"a": ' + "7" * 100_000 + "}", "a whole number of more than 4300 digits; write it as a text"),
    "deep nesting": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "half a character": ('{"a": "x\\ud83d"}', r"\\ud83d is half of a surrogate pair"),
    "half a character as a name": ('{"\\ude00": "x"}', r"\\ude00 is half of a surrogate pair"),
    "a list for a text": ('{"a": ["b"]}', "field 'a' is a list, and a str in .*line 1; fix one of them"),
    "an object for a text": ('{"a": {}}', "field 'a' is a dict, and a str in .*line 1"),
    "a control character": ('{"a": "x\x01"}', "Invalid control character"),
    "no JSON": ("{'a': 'b'}", "not valid JSON"),
    "two on a line": ('{"a": "b"} {"a": "c"}', "not valid JSON .Extra data"),
}


@pytest.mark.parametrize(("line", "message"), LINES.values(), ids=LINES)
def test_a_line_that_is_no_row_is_named(tmp_path, line, message):
    (tmp_path / "rows.jsonl").write_text('{"a": "first"}\n\n' + line + '\n{"a": "last"}\n')
    fails(tmp_path / "rows.jsonl", f"rows.jsonl, line 3: .*{message}")


def test_escapes_separators_marks_and_line_ends_change_no_text(tmp_path):
    texts = ["\U0001f600", "a\u2028b\u2029c\x85d", "\u0000", "end\r", "\ufeff", "null"]
    lines = "\r\n".join(json.dumps({"a": text}, ensure_ascii=number % 2 == 0) for number, text in enumerate(texts))
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert [row["a"] for row in rows_of(tmp_path / "rows.jsonl")] == texts
    (tmp_path / "list.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([{"a": text} for text in texts]).encode())
    assert [row["a"] for row in rows_of(tmp_path / "list.json")] == texts


def test_a_list_is_read_whatever_the_ending_of_its_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text('[{"a": "b"},\n {"a": "c"}]\n')
    assert rows_of(tmp_path / "rows.jsonl") == [{"a": "b"}, {"a": "c"}]


def test_one_object_over_several_lines_is_one_row(tmp_path):
    (tmp_path / "one.json").write_text('{\n "question": "q",\n "answer": "a"\n}\n')
    assert rows_of(tmp_path / "one.json") == [{"question": "q", "answer": "a"}]


def test_a_list_is_the_same_however_it_is_cut_into_pieces(tmp_path, monkeypatch):
    rows = [{"a": "é😀" * number, "b": [{"c": number}]} for number in range(30)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=2))
    for size in (1, 7, 1 << 20):
        monkeypatch.setattr(readers, "BLOCK", size)
        assert rows_of(path) == rows


def test_content_decides_what_is_read_not_path_and_time(tmp_path):
    for name, write_rows in (
        ("rows.jsonl", write),
        ("rows.json", write),
        ("rows.csv", lambda path, rows: path.write_text("a\n" + "".join(row["a"] + "\n" for row in rows))),
        ("rows.parquet", lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)),
    ):
        path, read = tmp_path / name, []
        for text in ("old", "new"):
            write_rows(path, [{"a": text}])
            os.utime(path, ns=(10**18, 10**18))
            read.append(rows_of(path))
        assert read == [[{"a": "old"}], [{"a": "new"}]], name


def test_a_config_of_a_local_folder_is_read_like_a_file(tmp_path):
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: one\n  data_files: files/x.jsonl\n---\n")
    (tmp_path / "files").mkdir()
    for text in ("2024-05-02", "2024-05-03"):
        write(tmp_path / "files" / "x.jsonl", [{"id": 2**64 + 1, "answer": text}])
        os.utime(tmp_path / "files" / "x.jsonl", ns=(10**18, 10**18))
        assert rows_of(f"{tmp_path}:one") == [{"id": 2**64 + 1, "answer": text}]


OWN_FORMS = {
    "separated by tabs": ("x.csv", '  sep: "\\t"\n', "a\tb\n1\t{}\n"),
    "one text a line": ("x.txt", "", "{}\n"),
    "a .tsv": ("x.tsv", "", "a\tb\n1\t{}\n"),
}


@pytest.mark.parametrize(("name", "option", "text"), OWN_FORMS.values(), ids=OWN_FORMS)
def test_content_decides_for_what_the_datasets_library_reads_too(tmp_path, name, option, text):
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: one\n  data_files: {name}\n{option}---\n")
    for word in ("old", "new"):
        (tmp_path / name).write_text(text.format(word))
        os.utime(tmp_path / name, ns=(10**18, 10**18))
        assert word in rows_of(f"{tmp_path}:one")[0].values()


@pytest.mark.parametrize(("name", "option"), [("x.csv", '  sep: "\\t"\n'), ("x.tsv", "")])
def test_no_columns_shift_where_a_config_names_another_separator(tmp_path, name, option):
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: one\n  data_files: {name}\n{option}---\n")
    (tmp_path / name).write_text("question\tanswer\n007\tNA\nTRUE\t2024-05-02\n")
    assert [*map(tuple, map(dict.values, rows_of(f"{tmp_path}:one")))] == [("007", "NA"), ("TRUE", "2024-05-02")]
    (tmp_path / name).write_text("question\tanswer\na\tb\t\nc\td\t\n")
    with pytest.raises(UserError, match=f"{name}, line 2: 3 fields where the header has 2 .* leave no tab at the end"):
        read_table(f"{tmp_path}:one")


OPTIONS = {
    "field": ("x.json", "field: data", '{"data": [null, {"a": 18446744073709551617}]}'),
    "skiprows": ("x.csv", "skiprows: 1", "made today\na,b\n1,2\n"),
    "names, column_names": ("x.csv", "column_names: [a, b]", "1,2\n3,4\n"),
    "quoting": ("x.tsv", "quoting: 3", 'a\tb\n"1\t2\n'),
}


@pytest.mark.parametrize(("name", "option", "text"), OPTIONS.values(), ids=OPTIONS)
def test_an_option_of_a_config_that_is_not_followed_is_named(tmp_path, request, name, option, text):
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: one\n  data_files: {name}\n  {option}\n---\n")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"its config 'one' sets {request.node.callspec.id}, which is not supported"):
        read_table(f"{tmp_path}:one")


def test_a_readme_that_is_not_yaml_is_named_in_one_line(tmp_path):
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    write(tmp_path / "train.jsonl", [{"a": "b"}])
    with pytest.raises(UserError, match="neither a folder nor a config 'one' that opens .while parsing") as error:
        read_table(f"{tmp_path}:one")
    assert "\n" not in str(error.value)


def test_compressed_files_of_a_config_are_named_and_not_read_with_other_types(tmp_path):
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: one\n  data_files: x.jsonl.gz\n---\n")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"answer": "2024-05-02"}\n'))
    with pytest.raises(UserError, match=r"holds x.jsonl.gz, which cannot be read"):
        read_table(f"{tmp_path}:one")


def test_parts_of_a_parquet_may_have_other_types_of_one_column(tmp_path):
    types = [pyarrow.int32(), pyarrow.int64(), pyarrow.uint64(), pyarrow.string(), pyarrow.large_string()]
    values = [1, 2**62 + 1, 2**64 - 1, "2024-05-02", "x"]
    for number, (kind, value) in enumerate(zip(types, values, strict=True)):
        table = pyarrow.table({"id": pyarrow.array([value, None], kind), f"only {number}": ["y", "z"]})
        pyarrow.parquet.write_table(table, tmp_path / f"train-{number}.parquet")
    table = read_table(str(tmp_path))
    assert [row.get("id") for _, row in table.rows] == [part for value in values for part in (value, None)]
    assert table.columns == ["id", *(f"only {number}" for number in range(5))]
    assert table.rows[3][1] == {"only 1": "z"}


def test_a_parquet_with_a_name_twice_is_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    fails(tmp_path / "rows.parquet", "names 'a' 2 times")


def test_parquet_keeps_its_own_types_and_leaves_out_nulls(tmp_path):
    when = datetime(2024, 5, 2)
    rows = [{"id": when, "text": "2024-05-02", "n": None}, {"id": when, "text": "x", "n": 2**62}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert rows_of(tmp_path / "rows.parquet") == [{"id": when, "text": "2024-05-02"}, rows[1]]
    whole = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(whole[:-20])
    fails(tmp_path / "torn.parquet", "cannot be read")


# CSV

SHIFTED = {
    "an unquoted comma in the first row": ("question,answer\nWhat is 2, plus 2?,4\nWhat?,6\n", "line 2: 3 fields"),
    "an unquoted comma in every row": ("sentence,label\nslow, but good,1\nlong, and bad,0\n", "line 2: 3 fields"),
    "an unquoted comma in a later row": ("question,answer\na,b\nc,d\ne, f,g\n", "line 4: 3 fields"),
    "a comma at the end of every row": ("question,answer\na,b,\nc,d,\n", "line 2: 3 fields where the header has 2"),
    "commas at the end": ("question,answer\na,b\nc,d,,,\n", "line 3: 5 fields"),
    "a field too few": ("question,answer\na,b\nc\n", "line 3: 1 fields where the header has 2"),
    "a field too few among many": ("a,b,c\n1,2,3\n1,2\n", r"line 3: 2 fields where the header has 3 \(a, b, c\)"),
    "after a field of several lines": ('question,answer\n"a\nb\nc",d\ne,f,g\n', "line 5: 3 fields"),
    "a quote that is never closed": ('question,answer\na,b\n"c,d\ne,f\n', "line 3: a quoted field is not closed"),
    "a letter behind a closing quote": ('question,answer\na,b\n"c"d,e\n', "line 3: ',' expected after '\"'"),
    "a name twice": ("question,answer,answer\na,b,c\n", "line 1: the header names 'answer' 2 times"),
    "a name of several lines twice": ('"a\nb","a\nb"\n1,2\n', r"line 1: the header names 'a\\nb' 2 times"),
    "names that are missing": (",,\na,b,c\n", "line 1: the header names '' 3 times"),
    "a name that is missing": ("question,answer,\na,b,c\n", "line 1: column 3 of the header has no name"),
    "semicolons": ("question;answer\na;b\n", "line 1: the fields of the header are separated by semicolons"),
    "tabs": ("question\tanswer\na\tb\n", "line 1: the fields of the header are separated by tabs"),
    "a NUL byte": ("question,answer\na\0,b\n", "line 2: a NUL byte"),
    "a header alone": ("question,answer\n\n", "has no rows"),
    "blank lines alone": ("\n \n", "has no rows"),
}


@pytest.mark.parametrize(("text", "message"), SHIFTED.values(), ids=SHIFTED)
def test_a_csv_row_that_does_not_fit_the_header_is_named_by_its_line(tmp_path, text, message):
    (tmp_path / "rows.csv").write_text(text)
    fails(tmp_path / "rows.csv", message)


def test_every_field_of_a_csv_is_the_text_that_stands_there(tmp_path):
    texts = [
        "NA",
        "null",
        "None",
        "nan",
        "1e5",
        "007",
        "TRUE",
        "",
        " x ",
        "-",
        "#N/A",
        "1,234",
        'say "x"',
        "a\nb",
        "2024-05-02",
        "5' 3\"",
    ]
    lines = ["text,after", *('"' + text.replace('"', '""') + '",z' for text in texts)]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    assert rows_of(tmp_path / "rows.csv") == [{"text": text, "after": "z"} for text in texts]


def test_marks_line_ends_and_an_unnamed_index_are_no_part_of_a_csvs_columns(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b'\xef\xbb\xbf,question,answer\r\n0,q,"a\r\nb"\r\n\r\n1,r,c\r\n')
    table = read_table(str(tmp_path / "rows.csv"))
    assert table.columns == ["question", "answer"]
    assert [row for _, row in table.rows] == [{"question": "q", "answer": "a\r\nb"}, {"question": "r", "answer": "c"}]


def test_an_empty_text_in_the_only_column_of_a_csv_is_a_row(tmp_path):
    (tmp_path / "rows.csv").write_text('\ntext\na\n""\n\n " "\nb\n')
    assert [row["text"] for row in rows_of(tmp_path / "rows.csv")] == ["a", "", ' " "', "b"]


def test_a_field_of_a_csv_may_be_long(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n" + "x" * 300_000 + ",y\n")
    assert rows_of(tmp_path / "rows.csv") == [{"a": "x" * 300_000, "b": "y"}]


def test_parts_of_a_csv_have_the_same_columns(tmp_path):
    (tmp_path / "train-00000-of-00002.csv").write_text("a,b\n1,2\n")
    (tmp_path / "train-00001-of-00002.csv").write_text("b,a\n3,4\n")
    with pytest.raises(UserError, match="has the columns b, a, and .*a, b; give one file"):
        read_table(str(tmp_path))
