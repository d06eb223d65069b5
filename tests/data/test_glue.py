"""Every task of GLUE from each kind of file, the hub's names and splits, and the errors for invalid data."""

import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from ba_lora.data import library
from ba_lora.data.glue import TASKS, load_examples
from ba_lora.errors import UserError
from tests.data.tables import write_table

# Task → (header and lines of its train.tsv as GLUE publishes it, rows as the hub has them). Quotation marks are ordinary characters.
GLUE = {
    "cola": (
        [
            'gj04\t1\t\tHe said "no.',
            "gj04\t0\t*\tThe book was by John written.",
        ],
        [
            {"sentence": 'He said "no.', "label": 1},
            {"sentence": "The book was by John written.", "label": 0},
        ],
    ),
    "sst2": (
        ["sentence\tlabel", '"bad \t0', "good \t1"],
        [{"sentence": '"bad ', "label": 0}, {"sentence": "good ", "label": 1}],
    ),
    "mrpc": (
        [
            "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            '1\t702876\t702977\tHe " said\tHe " did',
            "0\t1\t2\tone\ttwo",
        ],
        [
            {"sentence1": 'He " said', "sentence2": 'He " did', "label": 1},
            {"sentence1": "one", "sentence2": "two", "label": 0},
        ],
    ),
    "stsb": (
        [
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA plane.\tAn airplane.\t5.000",
            "1\tmain\tMSRvid\t2012\t4\tnone\tnone\tA man.\tA cat.\t0.4",
        ],
        [
            {"sentence1": "A plane.", "sentence2": "An airplane.", "label": 5.0},
            {"sentence1": "A man.", "sentence2": "A cat.", "label": 0.4},
        ],
    ),
    "qqp": (
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "133273\t1\t2\tHow?\tWhy?\t0", "402555\t3\t4\tWho?\tWho is it?\t1"],
        [
            {"question1": "How?", "question2": "Why?", "label": 0},
            {"question1": "Who?", "question2": "Who is it?", "label": 1},
        ],
    ),
    "mnli": (
        [
            "index\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
            "0\t31193n\tfiction\tIt rains.\tIt is wet.\tentailment\tentailment",
            "1\t1e\tfiction\tIt rains.\tIt is Monday.\tneutral\tneutral",
            "2\t2c\tfiction\tIt rains.\tIt is dry.\tneutral\tcontradiction",
        ],
        [
            {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0},
            {"premise": "It rains.", "hypothesis": "It is Monday.", "label": 1},
            {"premise": "It rains.", "hypothesis": "It is dry.", "label": 2},
        ],
    ),
    "qnli": (
        ["index\tquestion\tsentence\tlabel", "0\tWhen?\tIn 1980.\tentailment", "1\tWhen?\tOf wood.\tnot_entailment"],
        [
            {"question": "When?", "sentence": "In 1980.", "label": 0},
            {"question": "When?", "sentence": "Of wood.", "label": 1},
        ],
    ),
    "rte": (
        ["index\tsentence1\tsentence2\tlabel", "0\tIt rains.\tIt is wet.\tentailment", "1\tIt rains.\tIt is dry.\tnot_entailment"],
        [
            {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0},
            {"sentence1": "It rains.", "sentence2": "It is dry.", "label": 1},
        ],
    ),
    "wnli": (
        ["index\tsentence1\tsentence2\tlabel", "0\tI stuck a pin in.\tI did.\t1", "1\tShe left it.\tHe did.\t0"],
        [
            {"sentence1": "I stuck a pin in.", "sentence2": "I did.", "label": 1},
            {"sentence1": "She left it.", "sentence2": "He did.", "label": 0},
        ],
    ),
}  # fmt: skip


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("task", GLUE)
def test_glues_own_files_give_what_the_hub_gives(tmp_path, task):
    lines, rows = GLUE[task]
    write(tmp_path / "own" / "train.tsv", lines)
    expected = [tuple(row[column] for column in TASKS[task].columns) for row in rows]
    own = load_examples(task, "train", str(tmp_path / "own"))
    assert own.texts == expected and own.labels == [row["label"] for row in rows]
    assert own.ids == list(range(len(rows))) and own.report["read"] == len(rows)
    for ending in ("jsonl", "parquet", "csv"):
        write_table(tmp_path / ending / f"train.{ending}", rows)
        other = load_examples(task, "train", str(tmp_path / ending))
        assert (other.texts, other.labels, other.ids) == (own.texts, own.labels, own.ids), ending


def test_the_tasks_are_glues_and_one_of_our_own():
    assert list(TASKS) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "reviews"]
    headlines = {name: task.metrics[0] for name, task in TASKS.items()}
    others = {name: metric for name, metric in headlines.items() if metric != "accuracy"}
    assert others == {"cola": "matthews", "stsb": "pearson"}
    assert TASKS["stsb"].labels == () and len(TASKS["mnli"].labels) == 3
    assert [name for name, task in TASKS.items() if "f1" in task.metrics] == ["mrpc", "qqp"]


def test_the_hub_is_asked_for_the_tasks_config_and_its_name_of_the_split(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return Dataset.from_list([{"premise": "a", "hypothesis": "b", "label": 2, "idx": 7}])

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    for split in ("train", "validation", "validation_mismatched"):
        examples = load_examples("mnli", split)
    assert asked == [
        ("nyu-mll/glue", "mnli", split) for split in ("train", "validation_matched", "validation_mismatched")
    ]
    assert (examples.ids, examples.labels, examples.source) == ([7], [2], "nyu-mll/glue:mnli")


def test_without_a_hub_the_error_is_one_line_with_the_remedy():
    with pytest.raises(UserError, match=r"nyu-mll/glue:cola.*give its file or folder") as caught:
        load_examples("cola", "train")
    assert "\n" not in str(caught.value)


def test_one_folder_may_hold_the_folders_of_all_tasks(tmp_path):
    write(tmp_path / "CoLA" / "train.tsv", GLUE["cola"][0])
    write(tmp_path / "SST-2" / "dev.tsv", GLUE["sst2"][0])
    write(tmp_path / "SST-2" / "dev_ids.tsv", ["0", "1"])  # MRPC's folder has such a file
    assert load_examples("cola", "train", str(tmp_path)).labels == [1, 0]
    assert load_examples("sst2", "validation", str(tmp_path)).labels == [0, 1]


def test_mnlis_two_validation_splits_are_kept_apart(tmp_path):
    lines = GLUE["mnli"][0]
    write(tmp_path / "dev_matched.tsv", lines[:2]), write(tmp_path / "dev_mismatched.tsv", lines)
    assert load_examples("mnli", "validation", str(tmp_path)).labels == [0]
    assert load_examples("mnli", "validation_mismatched", str(tmp_path)).labels == [0, 1, 2]


def test_the_numbered_parts_of_a_split_are_read_in_their_order(tmp_path):
    rows = GLUE["rte"][1]
    write_table(tmp_path / "train-00001-of-00002.parquet", rows[1:])
    write_table(tmp_path / "train-00000-of-00002.parquet", rows[:1])
    assert load_examples("rte", "train", str(tmp_path)).labels == [0, 1]


def test_a_test_split_has_no_labels_whether_the_column_is_missing_or_minus_one(tmp_path):
    write(tmp_path / "test.tsv", ["index\tsentence", "0\tA man.", "1\tThe."])
    write_table(tmp_path / "json" / "test.jsonl", [{"sentence": "A man.", "label": -1, "idx": 0}])
    assert load_examples("cola", "test", str(tmp_path)).labels == [None, None]
    assert load_examples("cola", "test", str(tmp_path)).texts[1] == ("The.",)
    assert load_examples("cola", "test", str(tmp_path / "json")).labels == [None]


def test_qqps_broken_rows_are_left_out_and_counted_and_its_empty_questions_stay(tmp_path):
    lines = GLUE["qqp"][0]
    broken = ['"\tWas he real? What is the evidence?\t0']
    write(tmp_path / "train.tsv", [*lines[:2], *broken, "7\t5\t6\tHow can I?\t\t0", *lines[2:]])
    examples = load_examples("qqp", "train", str(tmp_path))
    assert examples.report["broken"] == 1 and examples.report["empty"] == 1
    assert examples.ids == [0, 2, 3]  # the numbers include the broken row, as the hub's do
    assert examples.texts[1] == ("How can I?", "") and examples.labels == [0, 0, 1]


QQP_TEST = ["id\tquestion1\tquestion2", "0\tHow old?\tWhat age?", "1\tHow far?\tWhat age?", "3\tWho?\tWhich one?"]


def test_the_rows_of_a_submission_have_the_numbers_of_their_file(tmp_path):
    def ids(task, name, lines, **options):
        write(tmp_path / task / name, lines)
        return load_examples(task, "test", str(tmp_path / task / name), numbered=True, **options).ids

    assert ids("qqp", "test.tsv", QQP_TEST) == [0, 1, 3]
    assert ids("qqp", "test.tsv", QQP_TEST, limit=2) == [0, 1]
    assert ids("sst2", "test.tsv", ["index\tsentence", "4\ta", "", "2\tb"]) == [4, 2]
    assert ids("sst2", "test.tsv", ["sentence", "a", "b"]) == [0, 1]  # no such column: its position
    assert ids("sst2", "test.csv", ["index,sentence", "4,a", '2,"b, c"']) == [4, 2]
    write_table(
        tmp_path / "idx.jsonl", [{"sentence": "a", "label": -1, "idx": 5}, {"sentence": "b", "label": -1, "idx": 4}]
    )
    assert load_examples("sst2", "test", str(tmp_path / "idx.jsonl"), numbered=True).ids == [5, 4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\tbroken line", r"test.tsv, line 3: 2 fields where 3 are needed"),
        ("1\ta\ttab\tin it", r"line 3: 4 fields where 3 are needed"),
        ("0\ta\tb", r"line 3: id 0 was already in .*line 2; give every row a number of its own"),
        ("\ta\tb", r"line 3: id is '', a whole number is needed"),
        ("x1\ta\tb", r"line 3: id is 'x1', a whole number is needed"),
        ("1.5\ta\tb", r"line 3: id is '1.5'"),
        ("-1\ta\tb", r"line 3: id is '-1'"),
        ("1\ta\tb\0", r"line 3: a NUL byte"),
    ],
)
def test_a_row_that_a_submission_cannot_number_is_an_error(tmp_path, line, message):
    write(tmp_path / "test.tsv", [*QQP_TEST[:2], line, *QQP_TEST[2:]])
    with pytest.raises(UserError, match=message) as caught:
        load_examples("qqp", "test", str(tmp_path), numbered=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Index", "IDX", "Id", "test_id"])
def test_the_column_of_numbers_is_known_in_any_case(tmp_path, name):
    for file, mark in (("test.tsv", "\t"), ("test.csv", ",")):
        write(tmp_path / file, [mark.join(line) for line in ([name, "sentence1", "sentence2"], "7ab", "3cd")])
        assert load_examples("rte", "test", str(tmp_path / file), numbered=True).ids == [7, 3]


def test_a_row_without_a_number_is_never_passed_over(tmp_path):
    """In a file without a column of numbers, a missing row would shift the number of every row after it."""
    write(tmp_path / "test.tsv", ["sentence1\tsentence2", "a\tb", "", "c\td"])
    with pytest.raises(UserError, match=r"test.tsv, line 4: the rows have no numbers .* a blank line before this one"):
        load_examples("rte", "test", str(tmp_path), numbered=True)
    write(tmp_path / "test.csv", ["sentence", "a", '""', "c"])
    with pytest.raises(UserError, match="row 2: the text 'sentence' is empty"):
        load_examples("cola", "test", str(tmp_path / "test.csv"), numbered=True)
    for number in (0, 1):
        write(tmp_path / "parts" / f"test-0000{number}-of-00002.tsv", ["sentence1\tsentence2", "a\tb", "c\td", ""])
    assert load_examples("rte", "test", str(tmp_path / "parts"), numbered=True).ids == [0, 1, 2, 3]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    write(tmp_path / "train.tsv", ["sentence\tsentence\tlabel", "a\tb\t1"])
    with pytest.raises(UserError, match="train.tsv, line 1: the header names 'sentence' 2 times"):
        load_examples("sst2", "train", str(tmp_path))
    write(tmp_path / "train.tsv", ["sentence\tlabel\t\t", "a\t1\t\t"])  # two columns without names
    assert load_examples("sst2", "train", str(tmp_path)).texts == [("a",)]


def test_a_date_that_numbers_a_row_is_its_text_and_can_be_written(tmp_path):
    table = pyarrow.table({"sentence": ["a"], "label": [1], "idx": pyarrow.array([1], pyarrow.date32())})
    pyarrow.parquet.write_table(table, tmp_path / "validation.parquet")
    assert json.dumps(load_examples("sst2", "validation", str(tmp_path)).ids) == '["1970-01-02"]'


def test_a_comma_in_a_sentence_moves_no_column(tmp_path):
    write(tmp_path / "train.csv", ["sentence,label", "slow, but good,1", "long, and bad,0"])
    with pytest.raises(UserError, match=r"train.csv, line 2: 3 fields where the header has 2 \(sentence, label\)"):
        load_examples("sst2", "train", str(tmp_path))
    write(tmp_path / "train.csv", ["sentence,label", '"slow, but good",1', '"so ""good""",0'])
    assert load_examples("sst2", "train", str(tmp_path)).texts == [("slow, but good",), ('so "good"',)]


def test_a_target_too_large_for_a_float_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "label": 1' + "0" * 400 + "}\n")
    with pytest.raises(UserError, match="row 1: the target 1000.* is not a number from 0 to 5") as caught:
        load_examples("stsb", "train", str(tmp_path / "rows.jsonl"))
    assert "\n" not in str(caught.value)


def test_the_report_has_the_classes_and_what_guessing_the_commonest_gives(tmp_path):
    rows = [{"sentence": str(number), "label": int(number < 3)} for number in range(4)]
    examples = load_examples("cola", "train", str(write_table(tmp_path / "rows.jsonl", rows)))
    assert examples.report == {"read": 4, "classes": {"unacceptable": 1, "acceptable": 3}, "majority": 0.75}
    part = examples.select([3, 0])
    assert (part.ids, part.labels, part.texts) == ([3, 0], [0, 1], [("3",), ("0",)])
    assert part.report["classes"] == {"unacceptable": 1, "acceptable": 1} and examples.first(2).labels == [1, 1]
    assert load_examples("cola", "train", str(tmp_path / "rows.jsonl"), limit=3).ids == [0, 1, 2]


def test_windows_line_ends_and_empty_last_lines_change_nothing(tmp_path):
    (tmp_path / "train.tsv").write_bytes("\r\n".join([*GLUE["rte"][0], "", ""]).encode())
    assert load_examples("rte", "train", str(tmp_path)).texts[1] == ("It rains.", "It is dry.")


HEADER = "sentence\tlabel"
BAD = {
    "a label by a name that is none": (
        *("rte", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tmaybe"]),
        r"train.tsv, line 2: the label 'maybe' is none of rte's: 0 \(entailment\), 1 \(not_entailment\)",
    ),
    "a number outside the map": ("sst2", [HEADER, "fine\t1", "bad\t2"], r"line 3: the label '2' is none of sst2's"),
    "half a class": ("sst2", [HEADER, "fine\t0.5"], "the label '0.5' is none"),
    "no label": ("sst2", [HEADER, "fine\t"], r"line 2 has no label .*only a test split"),
    "the mark of no label": ("sst2", [HEADER, "fine\t-1"], r"line 2 has no label"),
    "no label column": ("sst2", ["sentence\tother", "fine\t1"], r"no label \(its fields: sentence, other\)"),
    "a target that is not a number": ("stsb", ["sentence1\tsentence2\tscore", "a\tb\thigh"], r"line 2: the target 'high' is not a number"),
    "a target that is NaN": ("stsb", ["sentence1\tsentence2\tscore", "a\tb\tnan"], "the target 'nan' is not a number"),
    "a target out of range": ("stsb", ["sentence1\tsentence2\tscore", "a\tb\t7"], "not a number from 0 to 5"),
    "an empty sentence": ("sst2", [HEADER, "fine\t1", " \t0"], r"line 3: the text 'sentence' is empty"),
    "an empty second sentence": ("rte", ["sentence1\tsentence2\tlabel", "a\t\t0"], "the text 'sentence2' is empty"),
    "a row with too few fields": ("sst2", [HEADER, "fine\t1", "bad"], "line 3: 1 fields where 2 are needed"),
    "a row with too many fields": ("sst2", [HEADER, "fi\tne\t1"], "line 2: 3 fields where 2 are needed"),
    "a CoLA row with too few fields": ("cola", ["gj04\t1\tHe left.", "gj04\t1\t\tShe did."], "line 1: 3 fields where 4"),
    "another header": ("rte", ["text\tother\tlabel", "a\tb\t0"], "no column 'sentence1'; it has: text, other, label"),
    "no rows": ("sst2", [HEADER], "has no rows"),
}  # fmt: skip


@pytest.mark.parametrize(("task", "lines", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, task, lines, message):
    write(tmp_path / "train.tsv", lines)
    with pytest.raises(UserError, match=message) as caught:
        load_examples(task, "train", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_rows_of_json_are_named_too(tmp_path):
    file = str(write_table(tmp_path / "rows.jsonl", [{"sentence": "a", "label": 1}, {"sentence": None, "label": 1}]))
    with pytest.raises(UserError, match=r"rows.jsonl, row 2: the text 'sentence' is empty"):
        load_examples("cola", "train", file)
    file = str(write_table(tmp_path / "numbers.jsonl", [{"sentence": 3, "label": 1}]))
    with pytest.raises(UserError, match=r"row 1: the field 'sentence' is a int, a text is needed"):
        load_examples("cola", "train", file)
    file = str(write_table(tmp_path / "truth.jsonl", [{"sentence": "a", "label": True}]))
    with pytest.raises(UserError, match=r"row 1: the label True is none of cola's"):
        load_examples("cola", "train", file)


@pytest.mark.parametrize(
    ("task", "split", "message"),
    [
        ("colla", "train", "task 'colla' is not known, did you mean 'cola'"),
        (
            "cola",
            "validation_mismatched",
            "split of cola, 'validation_mismatched' is not known.*train, validation, test",
        ),
        ("mnli", "validation_matched", "split of mnli, 'validation_matched' is not known"),
    ],
)
def test_unknown_tasks_and_splits_are_refused(task, split, message):
    with pytest.raises(UserError, match=message):
        load_examples(task, split)


def test_a_missing_split_or_two_files_for_one_are_named(tmp_path):
    write(tmp_path / "train.tsv", GLUE["cola"][0])
    with pytest.raises(
        UserError, match=r"no file for the split validation \(it has: train.tsv\); call it validation.tsv or dev"
    ):
        load_examples("cola", "validation", str(tmp_path))
    write_table(tmp_path / "train.jsonl", GLUE["cola"][1])
    with pytest.raises(UserError, match=r"several files for the split train \(train.jsonl, train.tsv\)"):
        load_examples("cola", "train", str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        load_examples("cola", "train", str(tmp_path / "nowhere" / "train.tsv"))


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "train.tsv").write_bytes("sentence\tlabel\nna\u00efve\t1\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        load_examples("sst2", "train", str(tmp_path))


def test_the_published_cola_has_its_published_size():
    folder = Path(os.environ.get("BA_LORA_DATA", "")) / "cola"
    if "BA_LORA_DATA" not in os.environ or not (folder / "train.tsv").is_file():
        pytest.skip("BA_LORA_DATA names no folder with cola/train.tsv")
    train, dev = (load_examples("cola", split, str(folder)) for split in ("train", "validation"))
    assert (len(train.ids), len(dev.ids)) == (8_551, 1_043)
    assert train.report["classes"] == {"unacceptable": 2_528, "acceptable": 6_023}
    assert dev.texts[0] == ("The sailors rode the breeze clear of the rocks.",) and dev.labels[0] == 1
