"""Labels made wrong and classes made rare: exactly the requested number, the same ones for each seed, all of it recorded."""

import json
from collections import Counter

import pytest

from ba_lora.data.corruption import KINDS, corrupt, thin
from ba_lora.data.glue import TASKS, Examples, summary
from ba_lora.errors import UserError
from ba_lora.files import digest


def examples(task="mnli", counts=(60, 30, 10)):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    texts = [(f"premise {row}", "hypothesis") for row in range(len(labels))]
    ids = [f"id-{row}" for row in range(len(labels))]
    return Examples(TASKS[task], "train", ids, texts, labels, "here", {"read": 100} | summary(TASKS[task], labels))


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_share_that_was_asked_for_is_wrong_and_nothing_else_changes(kind, rate):
    before = examples()
    after, record = corrupt(before, kind, rate, seed=7)
    wrong = [row for row in range(100) if before.labels[row] != after.labels[row]]
    assert len(wrong) == round(100 * rate) == record["changed"]
    assert (after.ids, after.texts) == (before.ids, before.texts) and before.labels == examples().labels
    assert record["ids"] == digest([before.ids[row] for row in wrong])
    assert record["before"] == {"entailment": 60, "neutral": 30, "contradiction": 10}
    assert record["after"] == after.report["classes"] and after.report["read"] == 100
    flips = Counter((before.labels[row], after.labels[row]) for row in wrong)
    names = TASKS["mnli"].labels
    assert record["flips"] == {f"{names[old]} to {names[new]}": count for (old, new), count in flips.items()}
    assert json.loads(json.dumps(record)) == record and "pre-training data" in record["note"]


def test_class_noise_takes_the_share_of_each_class_to_the_next():
    _, record = corrupt(examples(), "class", 0.2, seed=1)
    assert record["flips"] == {
        "entailment to neutral": 12,
        "neutral to contradiction": 6,
        "contradiction to entailment": 2,
    }


def test_symmetric_noise_reaches_every_other_class_about_alike():
    before = examples(counts=(3000, 0, 0))
    after, _ = corrupt(before, "symmetric", 0.5, seed=3)
    counts = Counter(after.labels)
    assert counts[0] == 1500
    assert abs(counts[1] - 750) < 80 and counts[1] + counts[2] == 1500  # four standard deviations


def test_a_seed_fixes_the_rows_and_another_takes_others():
    for change in (
        lambda seed: corrupt(examples(), "symmetric", 0.3, seed),
        lambda seed: thin(examples(), {"neutral": 0.5}, seed),
    ):
        (first, record), (again, recorded), (_, other) = change(5), change(5), change(6)
        assert first == again and record == recorded and record["ids"] != other["ids"]


def test_thinning_leaves_the_share_of_a_class_in_the_old_order():
    before = examples()
    after, record = thin(before, {"entailment": 0.1, "neutral": 0.5}, seed=2)
    assert after.report["classes"] == {"entailment": 6, "neutral": 15, "contradiction": 10} == record["after"]
    assert record["removed"] == 69 and record["before"]["entailment"] == 60
    rows = [before.ids.index(key) for key in after.ids]
    assert rows == sorted(rows)
    assert [before.texts[row] for row in rows] == after.texts and [before.labels[row] for row in rows] == after.labels
    assert record["ids"] == digest([key for key in before.ids if key not in set(after.ids)])
    whole, record = thin(before, {"neutral": 1.0}, seed=2)
    assert whole.ids == before.ids and record["removed"] == 0


def test_a_task_without_classes_or_with_unlabelled_rows_is_refused():
    numbers = examples()._replace(task=TASKS["stsb"])
    for change in (lambda made: corrupt(made, "class", 0.1, 0), lambda made: thin(made, {}, 0)):
        with pytest.raises(UserError, match="stsb is a regression and has no classes"):
            change(numbers)
        with pytest.raises(UserError, match="here has rows without labels"):
            change(examples()._replace(labels=[None] * 100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: corrupt(examples(), "random", 0.1, 0), "kind of label noise 'random' is not known.*symmetric, class"),
        (lambda: corrupt(examples(), "class", 1.0, 0), "at least 0 and below 1, got 1.0"),
        (lambda: corrupt(examples(), "class", -0.1, 0), "at least 0 and below 1, got -0.1"),
        (lambda: thin(examples(), {"entailed": 0.1}, 0), "class of mnli, 'entailed' is not known, did you mean 'entailment'"),
        (lambda: thin(examples(), {"neutral": 0}, 0), "the share of class neutral is 0; it must be above 0 and at most 1"),
        (lambda: thin(examples(), {"neutral": 1.5}, 0), "the share of class neutral is 1.5"),
        (lambda: thin(examples(), {"neutral": float("nan")}, 0), "the share of class neutral is nan"),
        (lambda: thin(examples(), {"contradiction": 0.01}, 0), "leaves none of the 10 rows of class contradiction; raise it"),
    ],
)  # fmt: skip
def test_wrong_rates_and_names_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        change()
