"""GLUE-X: the out-of-domain sets on which a classifier of each GLUE task is tested, and how their labels translate.

The table is from Yang et al. (arXiv 2211.08073, ACL 2023) and their evaluation code; sizes follow from their published
accuracies. Sets without a public copy on the hub, or whose copy is a script (never run here), are read from a local file or
folder: one file per split, named after it (train.tsv), or one file with everything. The embedded task "reviews" has three
sets of its own.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from . import reviews
from .glue import HUB, OTHER_NAMES, SPLITS, TASKS, Examples, Task, class_number, label_of, make_examples
from .splits import Row, read_rows

TRAIN, VALIDATION, TEST = ("train",), ("validation", "dev", "evaluation"), ("test",)
# The names in the files that SNLI and HANS publish.
NLI_FILES = {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}


class Source(NamedTuple):
    """A set of labelled texts.

    columns, label: fields, in the order of the task's texts. classes: names by number, () = a score. hub: id, with its
    config after a colon; "" = local only. splits: all of them are read in this order, each under any of its names.
    other_names: {field: alternative name in files without it}. size: number of rows behind the published results.
    unlabelled: the published set has rows without a label. empty: how to treat an empty text (see make_examples). domain: of
    the registry package, for "reviews". note: where to get the set, or a caveat.
    """

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    hub: str = ""
    splits: tuple[tuple[str, ...], ...] = (TRAIN,)
    label: str = "label"
    other_names: dict[str, str] = {}  # noqa: RUF012 - never written to
    headless: tuple[str, ...] | None = None
    size: int | None = None
    unlabelled: bool = False
    skip_broken: bool = False
    empty: str = "error"
    domain: str = ""
    note: str = ""


class Shift(NamedTuple):
    """task: in-domain. name: of the set. classes: {class of the source: class of the task}; {} = a score."""

    task: str
    name: str
    source: Source
    classes: dict[str, str]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's metrics; the first is the headline."""
        return TASKS[self.task].metrics

    @property
    def at_hand(self) -> bool:
        """Return True if it needs neither a hub nor a local copy."""
        return bool(self.source.domain)


def _of_glue(name: str, splits: tuple[tuple[str, ...], ...], size: int) -> Source:
    task, other_names = TASKS[name], OTHER_NAMES.get(name, {})
    made = Source(task.columns, task.labels, f"{HUB}:{name}", splits, other_names=other_names, size=size)
    return made._replace(skip_broken=True, empty="keep") if name == "qqp" else made


POLARITY = ("negative", "positive")
NLI = ("entailment", "neutral", "contradiction")
SCRIPT = "its hub copy is, or was, a script, which is not run; then give the published files"
SICK = Source(
    ("sentence_A", "sentence_B"),
    NLI,
    "RobZamp/sick",
    (TRAIN, VALIDATION, TEST),
    other_names={"label": "entailment_label"},
    size=9_840,
    note=SCRIPT,
)
SOURCES = {
    # User-written reviews: the published sizes include empty ones, so they are kept.
    "imdb": Source(("text",), POLARITY, "stanfordnlp/imdb", (TRAIN, TEST), size=50_000, empty="keep"),
    "yelp": Source(("text",), POLARITY, "fancyzhx/yelp_polarity", (TRAIN, TEST), size=598_000, empty="keep"),
    "amazon": Source(("content",), POLARITY, "fancyzhx/amazon_polarity", (TRAIN, TEST), size=4_000_000, empty="keep"),
    "flipkart": Source(
        ("Summary",),
        ("negative", "neutral", "positive"),
        label="Sentiment",
        size=205_041,
        empty="drop",
        note="Kaggle's Flipkart product reviews with sentiment, .csv or .tsv, with the columns Summary and Sentiment",
    ),
    "mnli_mismatched": _of_glue("mnli", (("validation_mismatched", "dev_mismatched"),), 9_832),
    "snli": Source(
        ("premise", "hypothesis"),
        NLI,
        "stanfordnlp/snli",
        (TRAIN, VALIDATION, TEST),
        other_names=NLI_FILES,
        size=570_152,
        unlabelled=True,
    ),
    "sick": SICK,
    "sick_relatedness": SICK._replace(classes=(), label="relatedness_score", other_names={}),
    "newsqa": Source(
        ("question", "sentence"),
        ("entailment", "not_entailment"),
        size=119_525,
        note="the authors' set qnli_ood, saved as .jsonl, with the columns question, sentence and label (a class's name)",
    ),
    "mrpc": _of_glue("mrpc", (TRAIN, SPLITS["validation"]), 4_076),
    "qqp": _of_glue("qqp", (TRAIN, SPLITS["validation"]), 404_276),
    "rte": _of_glue("rte", (TRAIN, SPLITS["validation"]), 2_767),
    "hans": Source(
        ("premise", "hypothesis"),
        ("entailment", "non-entailment"),
        "jhu-cogsci/hans",
        (TRAIN, VALIDATION),
        other_names=NLI_FILES,
        size=60_000,
        note=SCRIPT,
    ),
    "scitail": Source(
        ("premise", "hypothesis"),
        ("entails", "neutral"),
        "allenai/scitail:tsv_format",
        (TRAIN, VALIDATION, TEST),
        headless=("premise", "hypothesis", "label"),
        size=26_527,
        note="the published results count 499 rows fewer than the 27,026 that the set has",
    ),
    "twitter": Source(
        ("Sent_1", "Sent_2"),
        ("no_paraphrase", "paraphrase"),
        splits=(TRAIN, VALIDATION, TEST),
        label="Label",
        other_names={"Sent_1": "sentence1", "Sent_2": "sentence2", "Label": "label"},
        size=16_777,
        note="PIT-2015, .tsv, with the columns Sent_1, Sent_2 and Label (1 = paraphrase, 0 = none; debatable pairs left out)",
    ),
    "grammar": Source(
        ("sentence",),
        ("unacceptable", "acceptable"),
        note="the authors' Grammar Test, cola_ood, saved as .jsonl, with the columns sentence and label (1 = acceptable)",
    ),
    **{domain: Source(("sentence",), reviews.LABELS, domain=domain) for domain in ("products", "tweets", "editorials")},
}

SAME_POLARITY = {name: name for name in POLARITY}
SAME_NLI = {name: name for name in NLI}
# A pair that agrees has class 0 in RTE and HANS, but class 1 in MRPC, QQP and Twitter: the numbers are reversed.
TO_RTE = {
    "mrpc": {"equivalent": "entailment", "not_equivalent": "not_entailment"},
    "qqp": {"duplicate": "entailment", "not_duplicate": "not_entailment"},
    "hans": {"entailment": "entailment", "non-entailment": "not_entailment"},
    "scitail": {"entails": "entailment", "neutral": "not_entailment"},
}
TO_MRPC = {
    "qqp": {"duplicate": "equivalent", "not_duplicate": "not_equivalent"},
    "twitter": {"paraphrase": "equivalent", "no_paraphrase": "not_equivalent"},
    "rte": {"entailment": "equivalent", "not_entailment": "not_equivalent"},
    "hans": {"entailment": "equivalent", "non-entailment": "not_equivalent"},
}
TO_QQP = {
    "mrpc": {"equivalent": "duplicate", "not_equivalent": "not_duplicate"},
    "rte": {"entailment": "duplicate", "not_entailment": "not_duplicate"},
    "hans": {"entailment": "duplicate", "non-entailment": "not_duplicate"},
    "twitter": {"paraphrase": "duplicate", "no_paraphrase": "not_duplicate"},
}
TABLE = {
    "sst2": dict.fromkeys(("imdb", "yelp", "amazon"), SAME_POLARITY) | {"flipkart": SAME_POLARITY | {"neutral": "negative"}},
    "mnli": dict.fromkeys(("mnli_mismatched", "snli", "sick"), SAME_NLI),
    "qnli": {"newsqa": {name: name for name in ("entailment", "not_entailment")}},
    "rte": TO_RTE,
    "mrpc": TO_MRPC,
    "qqp": TO_QQP,
    "stsb": {"sick_relatedness": {}},
    "cola": {"grammar": {name: name for name in ("unacceptable", "acceptable")}},
    "reviews": dict.fromkeys(("products", "tweets", "editorials"), SAME_POLARITY),
}  # fmt: skip
SHIFTS = {
    task: tuple(Shift(task, name, SOURCES[name], classes) for name, classes in sets.items())
    for task, sets in TABLE.items()
}


def load_shift(shift: Shift, data: str | None = None, limit: int | None = None) -> Examples:
    """The first `limit` rows of an out-of-domain set, as examples of the in-domain task; its splits follow one another.

    data: a file, a folder or a hub id to use instead of the set's own. ids contain split and row. SNLI's rows without a gold
    label are left out and counted in report["unlabelled"]; the published accuracy is over all rows and counts these as
    wrong.

    Raises UserError naming file and row: a set that is local only, a label outside the map, an empty text, a broken row.
    """
    source, task = shift.source, TASKS[shift.task]
    if source.domain and data is None:
        rows, extra = reviews.labelled(source.domain)
        return make_examples(task, shift.name, rows, reviews.SOURCE, extra).first(limit)
    if not (data or source.hub):
        raise UserError(f"{shift.task} → {shift.name} has no copy on the hub; give a file or folder: {source.note}")
    counts = Counter({"published": source.size} if source.size else {})
    place, rows = _rows(shift, data or source.hub, counts, limit)
    return make_examples(
        task,
        shift.name,
        islice(rows, limit),
        place,
        counts,
        columns=source.columns,
        label=source.label,
        other_names=source.other_names,
        convert=lambda value: _translate(shift, task, value),
        empty=source.empty,
        drop_unlabelled=source.unlabelled,
    )


def _rows(shift: Shift, data: str, counts: Counter, limit: int | None) -> tuple[str, Iterator[Row]]:
    """(source, rows) of all splits; a single file is read once."""
    source, parts, place = shift.source, [], data
    name, _, config = source.hub.partition(":")
    splits = source.splits[:1] if Path(data).is_file() else source.splits
    for split in splits:
        place, rows = read_rows(
            name if data == source.hub else data,
            split,
            config=config if data == source.hub else None,
            folders=(shift.name, config),
            headless=source.headless,
            broken=counts if source.skip_broken else None,
            limit=limit,
        )
        parts.append((split[0], rows))
    named = ((where, f"{split}-{key}", row) for split, rows in parts for where, key, row in rows)
    return place if len(splits) == 1 else data, named


def _translate(shift: Shift, task: Task, value) -> int | float | None:
    """The class or target of the in-domain task for a label of the source; None for a missing label."""
    if not shift.classes:
        try:
            return label_of(task, round(float(value) - 1))  # relatedness is 1 to 5; 2.5 is rounded to 2, as published
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"the score {value!r} is not a number from 1 to 5") from None
    number = class_number(value, shift.source.classes, shift.name)
    return None if number is None else task.labels.index(shift.classes[shift.source.classes[number]])
