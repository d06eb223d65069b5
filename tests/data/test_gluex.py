"""Every pair of GLUE-X on hand-written rows: columns, translated classes, merged splits, and rows left out."""

import json

import pytest
from datasets import Dataset

from ba_lora.data import library
from ba_lora.data.glue import TASKS
from ba_lora.data.gluex import SHIFTS, load_shift
from ba_lora.errors import UserError

PAIRS = [(task, shift.name) for task, shifts in SHIFTS.items() for shift in shifts]


def nli(*labels, columns=("premise", "hypothesis")):
    return [{columns[0]: "It rains.", columns[1]: "It is wet.", "label": label} for label in labels]


def texts(column, label, *pairs):
    return [{column: text, label: value} for text, value in pairs]


# (in-domain task, set) → (rows of the source as published, classes of the in-domain task)
ROWS = {
    ("sst2", "imdb"): (texts("text", "label", ("Bad.", 0), ("Good.", 1)), ["negative", "positive"]),
    ("sst2", "yelp"): (texts("text", "label", ("Good.", 1), ("Bad.", 0)), ["positive", "negative"]),
    ("sst2", "amazon"): (
        [{"title": "T", "content": "Good.", "label": 1}, {"title": "T", "content": "Bad.", "label": 0}],
        ["positive", "negative"],
    ),
    ("sst2", "flipkart"): (
        texts("Summary", "Sentiment", ("Bad.", "negative"), ("So so.", "neutral"), ("Good.", "positive")),
        ["negative", "negative", "positive"],
    ),
    ("mnli", "mnli_mismatched"): (nli(0, 1, 2), ["entailment", "neutral", "contradiction"]),
    ("mnli", "snli"): (nli(2, 1, 0), ["contradiction", "neutral", "entailment"]),
    ("mnli", "sick"): (
        nli(0, 1, 2, columns=("sentence_A", "sentence_B")),
        ["entailment", "neutral", "contradiction"],
    ),
    ("qnli", "newsqa"): (
        nli("not_entailment", "entailment", columns=("question", "sentence")),
        ["not_entailment", "entailment"],
    ),
    ("rte", "mrpc"): (nli(1, 0, columns=("sentence1", "sentence2")), ["entailment", "not_entailment"]),
    ("rte", "qqp"): (nli(1, 0, columns=("question1", "question2")), ["entailment", "not_entailment"]),
    ("rte", "hans"): (nli(0, 1), ["entailment", "not_entailment"]),
    ("rte", "scitail"): (nli("entails", "neutral"), ["entailment", "not_entailment"]),
    ("mrpc", "qqp"): (nli(1, 0, columns=("question1", "question2")), ["equivalent", "not_equivalent"]),
    ("mrpc", "twitter"): (
        [{"Sent_1": "a", "Sent_2": "b", "Label": 1}, {"Sent_1": "a", "Sent_2": "c", "Label": 0}],
        ["equivalent", "not_equivalent"],
    ),
    ("mrpc", "rte"): (nli(0, 1, columns=("sentence1", "sentence2")), ["equivalent", "not_equivalent"]),
    ("mrpc", "hans"): (nli(0, 1), ["equivalent", "not_equivalent"]),
    ("qqp", "mrpc"): (nli(0, 1, columns=("sentence1", "sentence2")), ["not_duplicate", "duplicate"]),
    ("qqp", "rte"): (nli(0, 1, columns=("sentence1", "sentence2")), ["duplicate", "not_duplicate"]),
    ("qqp", "hans"): (nli(0, 1), ["duplicate", "not_duplicate"]),
    ("qqp", "twitter"): (nli(1, 0, columns=("sentence1", "sentence2")), ["duplicate", "not_duplicate"]),
    ("stsb", "sick_relatedness"): (
        [{"sentence_A": "a", "sentence_B": "b", "relatedness_score": score} for score in (1.0, 4.6, 3.5, 5.0)],
        [0.0, 4.0, 2.0, 4.0],  # round(score - 1); 2.5 rounds to the even 2
    ),
    ("cola", "grammar"): (texts("sentence", "label", ("He left.", 1), ("He leave.", 0)), ["acceptable", "unacceptable"]),
    ("reviews", "products"): (texts("sentence", "label", ("Good.", 1), ("Bad.", 0)), ["positive", "negative"]),
    ("reviews", "tweets"): (texts("sentence", "label", ("Good.", 1), ("Bad.", 0)), ["positive", "negative"]),
    ("reviews", "editorials"): (texts("sentence", "label", ("Good.", 1), ("Bad.", 0)), ["positive", "negative"]),
}  # fmt: skip


def shift_of(task, name):
    return next(shift for shift in SHIFTS[task] if shift.name == name)


def save(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_every_pair_of_the_table_has_rows_here():
    assert list(ROWS) == PAIRS


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_the_labels_of_every_pair_become_the_tasks_classes(tmp_path, task, name):
    rows, expected = ROWS[task, name]
    examples = load_shift(shift_of(task, name), save(tmp_path / "all.jsonl", rows))
    names = TASKS[task].labels
    assert [names[label] if names else label for label in examples.labels] == expected
    assert all(len(text) == len(TASKS[task].columns) for text in examples.texts)
    assert examples.task is TASKS[task] and examples.split == name and len(set(examples.ids)) == len(rows)


@pytest.mark.parametrize("task", ["rte", "mrpc", "qqp"])
def test_agreement_is_reversed_by_number_between_entailment_and_paraphrase(tmp_path, task):
    entailment = {"rte", "hans"}
    for shift in SHIFTS[task]:
        if shift.name == "scitail":
            continue
        columns = ("Sent_1", "Sent_2", "Label") if shift.name == "twitter" else (*shift.source.columns, "label")
        rows = [dict(zip(columns, ("a", "b", number), strict=True)) for number in (0, 1)]
        labels = load_shift(shift, save(tmp_path / f"{shift.name}.jsonl", rows)).labels
        reversed_ = (task in entailment) != (shift.name in entailment)
        assert labels == ([1, 0] if reversed_ else [0, 1]), shift.name


def test_the_metrics_are_the_tasks():
    assert shift_of("mrpc", "twitter").metrics == ("accuracy", "f1")
    assert shift_of("stsb", "sick_relatedness").metrics == ("pearson", "spearman")
    assert shift_of("cola", "grammar").metrics == ("matthews",)
    assert {shift.metrics for shift in SHIFTS["rte"]} == {("accuracy",)}


def test_every_label_of_a_source_is_translated_to_a_class_of_the_task():
    for task, shifts in SHIFTS.items():
        for shift in shifts:
            assert set(shift.classes) == set(shift.source.classes)
            assert set(shift.classes.values()) == set(TASKS[task].labels)


def test_snlis_rows_without_a_gold_label_are_left_out_and_counted(tmp_path):
    save(tmp_path / "train.jsonl", nli(0, -1, 2))
    save(tmp_path / "validation.jsonl", nli(-1, 1))
    save(tmp_path / "test.jsonl", nli(0))
    examples = load_shift(shift_of("mnli", "snli"), str(tmp_path))
    assert examples.labels == [0, 2, 1, 0]
    assert examples.ids == ["train-0", "train-2", "validation-1", "test-0"]
    assert (examples.report["read"], examples.report["unlabelled"], examples.report["published"]) == (6, 2, 570_152)
    with pytest.raises(UserError, match="row 2 has no label"):
        load_shift(
            shift_of("mnli", "sick"), save(tmp_path / "s.jsonl", nli(0, -1, columns=("sentence_A", "sentence_B")))
        )


def test_the_files_are_read_as_their_authors_publish_them(tmp_path):
    def write(name, *lines):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    gold = [{"sentence1": "a", "sentence2": "b", "gold_label": label} for label in ("neutral", "-", "contradiction")]
    for split in ("train", "dev", "test"):
        save(tmp_path / "snli" / f"snli_1.0_{split}.jsonl", gold)
    assert load_shift(shift_of("mnli", "snli"), str(tmp_path / "snli")).labels == [1, 2] * 3
    header = "gold_label\tsentence1\tsentence2\theuristic"
    write("hans/heuristics_train_set.txt", header, "non-entailment\ta\tb\tx")
    write("hans/heuristics_evaluation_set.txt", header, "entailment\ta\tb\tx")
    assert load_shift(shift_of("rte", "hans"), str(tmp_path / "hans")).labels == [1, 0]
    assert load_shift(shift_of("qqp", "hans"), str(tmp_path / "hans")).labels == [0, 1]
    write(
        "sick/SICK.txt", "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score", "1\ta\tb\tNEUTRAL\t4.5"
    )
    assert load_shift(shift_of("mnli", "sick"), str(tmp_path / "sick/SICK.txt")).labels == [1]
    assert load_shift(shift_of("stsb", "sick_relatedness"), str(tmp_path / "sick/SICK.txt")).labels == [4.0]
    for split in ("train", "dev", "test"):
        write(f"scitail/scitail_1.0_{split}.tsv", 'A "cell.\tIt lives.\tentails', "A\tB\tneutral")
    scitail = load_shift(shift_of("rte", "scitail"), str(tmp_path / "scitail"))
    assert scitail.labels == [0, 1] * 3 and scitail.texts[0] == ('A "cell.', "It lives.")
    write("MRPC/train.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t1\t2\ta\tb")
    write("MRPC/dev.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\ta\tb")
    assert load_shift(shift_of("rte", "mrpc"), str(tmp_path)).labels == [0, 1]  # a folder of several tasks
    write("MNLI/dev_mismatched.tsv", "sentence1\tsentence2\tgold_label", "a\tb\tcontradiction")
    assert load_shift(shift_of("mnli", "mnli_mismatched"), str(tmp_path)).labels == [2]
    write(
        "flipkart.csv",
        "product_name,Summary,Sentiment",
        'x,"fine, ""really""",positive',
        "x,,neutral",
        "x,bad,negative",
    )
    flipkart = load_shift(shift_of("sst2", "flipkart"), str(tmp_path / "flipkart.csv"))
    assert flipkart.texts == [('fine, "really"',), ("bad",)] and flipkart.labels == [1, 0]
    assert flipkart.report["empty"] == 1


@pytest.mark.parametrize(
    ("task", "name", "asked"),
    [
        ("sst2", "yelp", [("fancyzhx/yelp_polarity", None, "train"), ("fancyzhx/yelp_polarity", None, "test")]),
        ("rte", "qqp", [("nyu-mll/glue", "qqp", "train"), ("nyu-mll/glue", "qqp", "validation")]),
        ("mnli", "mnli_mismatched", [("nyu-mll/glue", "mnli", "validation_mismatched")]),
        ("rte", "scitail", [("allenai/scitail", "tsv_format", split) for split in ("train", "validation", "test")]),
    ],
)
def test_all_splits_are_asked_of_the_hub_and_merged(monkeypatch, task, name, asked):
    seen, rows = [], ROWS[task, name][0]

    def load_dataset(hub, config=None, split=None):
        seen.append((hub, config, split))
        return Dataset.from_list(rows)

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    examples = load_shift(shift_of(task, name))
    assert seen == asked and len(examples.ids) == len(rows) * len(asked) == len(set(examples.ids))
    assert len(load_shift(shift_of(task, name), limit=1).ids) == 1


def test_a_hub_set_that_is_a_script_is_not_run_and_a_local_copy_is_asked_for(monkeypatch):
    def load_dataset(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found hans.py")

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"jhu-cogsci/hans cannot be loaded .*found hans.py\); give a local copy"):
        load_shift(shift_of("rte", "hans"))


def test_what_is_local_only_says_where_it_comes_from():
    with pytest.raises(UserError, match=r"sst2 → flipkart has no copy on the hub; .*Kaggle.*Summary and Sentiment"):
        load_shift(shift_of("sst2", "flipkart"))
    assert [shift.name for shifts in SHIFTS.values() for shift in shifts if shift.at_hand] == [
        "products",
        "tweets",
        "editorials",
    ]


@pytest.mark.parametrize(
    ("task", "name", "rows", "message"),
    [
        ("sst2", "imdb", [{"text": "a", "label": 2}], r"row 1: the label 2 is none of imdb's: 0 \(negative\), 1 \(positive\)"),
        ("rte", "scitail", nli("entails", "contradicts"), r"row 2: the label 'contradicts' is none of scitail's"),
        ("stsb", "sick_relatedness", [{"sentence_A": "a", "sentence_B": "b", "relatedness_score": 9}], "score 9 is not a number from 1"),
        ("qnli", "newsqa", nli("entailment", columns=("question", "answer")), "no column 'sentence'"),
        ("mnli", "snli", [{"premise": " ", "hypothesis": "b", "label": 0}], "row 1: the text 'premise' is empty"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_a_set_are_named(tmp_path, task, name, rows, message):
    with pytest.raises(UserError, match=message):
        load_shift(shift_of(task, name), save(tmp_path / "rows.jsonl", rows))
