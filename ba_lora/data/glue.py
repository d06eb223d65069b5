"""GLUE's tasks, plus our own "reviews": their columns, classes and metrics, and their rows as labelled texts.

Rows come from the hub (nyu-mll/glue), from a folder in GLUE's own format (tab-separated files in which a quotation mark is
an ordinary character), or from JSONL, Parquet or CSV files with the hub's column names. Metrics: the GLUE paper (Wang et
al., 2018); class numbers: the hub's.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..errors import UserError, choose
from . import reviews
from .splits import Row, read_rows


class Task(NamedTuple):
    """columns: of the text or the pair. labels: class names by number, () = regression. metrics: the first is the headline."""

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]


ENTAILED = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
TASKS = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
        Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        Task("mrpc", PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        Task("stsb", PAIR, (), ("pearson", "spearman")),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        Task("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",)),
        Task("qnli", ("question", "sentence"), ENTAILED, ("accuracy",)),
        Task("rte", PAIR, ENTAILED, ("accuracy",)),
        Task("wnli", PAIR, ("not_entailment", "entailment"), ("accuracy",)),
        Task("reviews", ("sentence",), reviews.LABELS, ("accuracy",)),
    )
}
HUB = "nyu-mll/glue"
SCORES = (0.0, 5.0)  # least and greatest target of STS-B
# Columns whose names in GLUE's own files differ from the hub's.
OTHER_NAMES = {
    "mrpc": {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
    "stsb": {"label": "score"},
    "qqp": {"label": "is_duplicate"},
    "mnli": {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
}
COLA_FIELDS = ("source", "label", "mark", "sentence")  # its train.tsv and dev.tsv have no header
# Split → its names, the hub's first; MNLI has two of each except the first.
SPLITS = {"train": ("train",), "validation": ("validation", "dev"), "test": ("test",)}
MNLI_SPLITS = {
    "train": ("train",),
    "validation": ("validation_matched", "dev_matched"),
    "test": ("test_matched",),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
    "test_mismatched": ("test_mismatched",),
}


class Examples(NamedTuple):
    """Labelled texts of a task.

    ids: one per row, the hub's idx. texts: one tuple per row with the task's columns. labels: class numbers, or regression
    targets; None for rows of a test split without labels. report: rows read, rows left out and why, and rows per class.
    """

    task: Task
    split: str
    ids: list
    texts: list[tuple[str, ...]]
    labels: list[int | float | None]
    source: str
    report: dict

    def select(self, rows: Sequence[int]) -> "Examples":
        """These rows, in this order; the report's class counts are those of the selected rows."""
        ids, texts, labels = ([column[row] for row in rows] for column in (self.ids, self.texts, self.labels))
        return self._replace(ids=ids, texts=texts, labels=labels, report=self.report | summary(self.task, labels))

    def first(self, count: int | None) -> "Examples":
        """The first `count` rows, or all."""
        return self if count is None else self.select(range(min(count, len(self.ids))))


def load_examples(
    task: str, split: str, data: str | None = None, limit: int | None = None, numbered: bool = False
) -> Examples:
    """The first `limit` rows of a split of `task`.

    split: train, validation or test; mnli also has validation_mismatched and test_mismatched. data: a hub id, a file, a
    folder with the task's files, or a folder that holds the folders of several tasks; None = the hub's nyu-mll/glue, or the
    registry package for "reviews". Only test splits may lack labels. Rows of QQP with too few fields are left out and
    counted, as in GLUE's own reader; its empty questions are kept and counted. numbered: the ids are the rows' own numbers,
    as a submission needs them (see `splits.INDEX`); a broken row is then an error, because every row needs a prediction.

    Raises UserError naming the row or line: an unknown task or split, a missing column, a broken row, an empty text, a label
    outside the task's classes, a target outside 0 to 5.
    """
    known = TASKS[choose("task", task, TASKS)]
    splits = MNLI_SPLITS if task == "mnli" else SPLITS
    choose(f"split of {task},", split, splits)
    if task == "reviews" and data is None:
        rows, extra = reviews.labelled("movies", split)
        return make_examples(known, split, rows, reviews.SOURCE, extra).first(limit)
    broken = Counter() if task == "qqp" and not numbered else None
    source, rows = read_rows(
        data or HUB,
        splits[split],
        config=task if data in (None, HUB) else None,
        folders=(task,),
        headless=COLA_FIELDS if task == "cola" else None,
        broken=broken,
        limit=limit,
        numbered=numbered,
    )
    return make_examples(
        known,
        split,
        rows,
        source,
        broken,
        other_names=OTHER_NAMES.get(task, {}),
        empty="keep" if task == "qqp" else "error",
        may_lack_labels=split.startswith("test"),
    )


def make_examples(
    task: Task,
    split: str,
    rows: Iterable[Row],
    source: str,
    extra: dict | None = None,
    *,
    columns: Sequence[str] | None = None,
    label: str = "label",
    other_names: dict[str, str] | None = None,
    convert: Callable | None = None,
    empty: str = "error",
    may_lack_labels: bool = False,
    drop_unlabelled: bool = False,
) -> Examples:
    """Rows as examples of `task`, each checked. The report contains `extra`, including counts added to it while rows are
    read.

    columns, label: the names of the fields, by default the task's; other_names: {name: alternative if that name is missing}.
    convert: value of the label field → class or target, None = unlabelled; it raises ValueError for any other value. empty:
    what to do with a row that has an empty text: "error", "keep" or "drop".
    """
    columns, names, convert = (
        columns or task.columns,
        other_names or {},
        convert or (lambda value: label_of(task, value)),
    )
    ids, texts, labels, counts = [], [], [], Counter()
    for place, key, row in rows:
        counts["read"] += 1
        text = tuple(_text(row, column, names, place) for column in columns)
        missing = next((column for part, column in zip(text, columns, strict=True) if not part.strip()), None)
        if missing and empty == "error":
            raise UserError(f"{place}: the text '{missing}' is empty; fix or remove the row")
        target = _converted(row, label, names, convert, place)
        if target is None and not may_lack_labels and not drop_unlabelled:
            raise UserError(f"{place} has no label (its fields: {', '.join(row)}); only a test split may lack them")
        counts["empty"] += bool(missing)
        counts["unlabelled"] += target is None
        if (missing and empty == "drop") or (target is None and drop_unlabelled):
            continue
        ids.append(key)
        texts.append(text)
        labels.append(target)
    if not ids:
        raise UserError(f"{source}, split {split}, has no rows that can be used")
    found = {name: count for name, count in counts.items() if count}
    return Examples(task, split, ids, texts, labels, source, found | (extra or {}) | summary(task, labels))


def _text(row: dict, column: str, names: dict[str, str], place: str) -> str:
    for name in (column, names.get(column)):
        if name in row:
            if not isinstance(row[name], str | None):
                raise UserError(f"{place}: the field '{name}' is a {type(row[name]).__name__}, a text is needed")
            return row[name] or ""
    wanted = f"'{column}'" + (f" (or '{names[column]}')" if column in names else "")
    raise UserError(f"{place} has no column {wanted}; it has: {', '.join(row)}")


def _converted(row: dict, label: str, names: dict[str, str], convert: Callable, place: str) -> int | float | None:
    value = row.get(label, row.get(names.get(label, label)))
    try:
        return None if value in (None, "") else convert(value)
    except ValueError as error:
        raise UserError(f"{place}: {error}; fix or remove the row") from None


def label_of(task: Task, value) -> int | float | None:
    """The class number or target in a label field; None if it marks a row without a label.

    Raises ValueError, listing the valid values, for anything else.
    """
    return class_number(value, task.labels, task.name) if task.labels else _target(value)


def class_number(value, names: Sequence[str], whose: str) -> int | None:
    """The number of the class that `value` names, by number or by name in any case; None for -1 and "-"."""
    text = str(value).strip().lower()
    if text in names:
        return names.index(text)
    try:
        number = -1.0 if text == "-" else float(text)
    except ValueError:
        number = math.nan
    if number not in range(-1, len(names)):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        raise ValueError(f"the label {value!r} is none of {whose}'s: {known}")
    return None if number == -1 else int(number)


def _target(value) -> float | None:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if number == -1:
        return None
    if not SCORES[0] <= number <= SCORES[1]:
        raise ValueError(f"the target {value!r} is not a number from {SCORES[0]:g} to {SCORES[1]:g}")
    return number


def summary(task: Task, labels: Sequence) -> dict:
    """Counts per class and the share of the most common one, which needs no classifier; for a regression, mean and
    deviation."""
    given = [label for label in labels if label is not None]
    if not given:
        return {}
    if not task.labels:
        mean = sum(given) / len(given)
        return {"targets": {"mean": mean, "sd": math.sqrt(sum((value - mean) ** 2 for value in given) / len(given))}}
    counts = Counter(given)
    by_class = {name: counts[number] for number, name in enumerate(task.labels)}
    return {"classes": by_class, "majority": max(counts.values()) / len(given)}
