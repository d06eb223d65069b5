"""A saved classifier's outputs keep their meaning: they are put in the task's order by name, or the classifier is rejected."""

import json

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    RobertaConfig,
)

from ba_lora.data.glue import TASKS
from ba_lora.errors import UserError
from ba_lora.files import read_json, write_json
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export, load
from ba_lora.models import load_classifier
from eval.classifiers.classify import open_classifier
from tests.common import SMALL, classifier_batch

SIZES = {**SMALL, "max_position_embeddings": 64}
KINDS = {"llama": LlamaConfig, "bert": BertConfig, "roberta": RobertaConfig}  # no bias; a bias; a head of two layers
MNLI = TASKS["mnli"].labels
OTHER_ORDER = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]


def saved_classifier(folder, names, kind="llama", **changes):
    """A classifier as another project would save it, its outputs called `names`; the stock model."""
    if names is not None:
        changes = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}} | changes
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(KINDS[kind](**SIZES | changes)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    model.save_pretrained(folder)
    return model


def by_name(model, batch):
    logits = model(**batch).logits
    return {model.config.id2label[number].lower(): logits[:, number] for number in range(logits.shape[1])}


def inputs():
    torch.manual_seed(1)
    batch = classifier_batch(3, 8)
    batch.pop("labels")
    batch["input_ids"][batch["attention_mask"] == 0] = (
        0  # the config's padding id, by which transformers finds the last token
    )
    return batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names",
    [OTHER_ORDER, ["neutral", "entailment", "contradiction"], ["Entailment", "Neutral", "Contradiction"]],
)
@torch.no_grad()
def test_every_name_keeps_its_output_whatever_the_order_and_the_case(names, kind, tmp_path):
    expected = by_name(saved_classifier(tmp_path, names, kind), inputs())
    model, head = load_classifier(str(tmp_path), MNLI)
    assert [model.config.id2label[number] for number in range(3)] == list(MNLI)
    torch.testing.assert_close(by_name(model, inputs()), expected)
    assert head  # a complete classifier keeps its head and continues training it


@torch.no_grad()
def test_names_are_compared_without_regard_to_case_dashes_and_spaces(tmp_path):
    stock = saved_classifier(tmp_path, ["Not Entailment", "ENTAILMENT"])
    model, _ = load_classifier(str(tmp_path), TASKS["rte"].labels)
    torch.testing.assert_close(model(**inputs()).logits, stock(**inputs()).logits[:, [1, 0]])


@pytest.mark.parametrize("names", [None, ["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"]])
@torch.no_grad()
def test_outputs_without_names_count_by_position(names, tmp_path):
    stock = saved_classifier(tmp_path, names, num_labels=3)
    model, _ = load_classifier(str(tmp_path), MNLI)
    torch.testing.assert_close(model(**inputs()).logits, stock(**inputs()).logits)


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (["-", "+"], ("+", "-"), [1, 0]),
        (["C", "C++", "C#"], ("C#", "C", "C++"), [2, 0, 1]),
        (["a", "A"], ("A", "a"), [1, 0]),
        (["0", "1"], ("1", "0"), [1, 0]),
    ],
)
@torch.no_grad()
def test_names_that_are_the_same_to_the_letter_are_matched_by_every_letter(names, labels, order, tmp_path):
    stock = saved_classifier(tmp_path, names)
    model, _ = load_classifier(str(tmp_path), labels)
    torch.testing.assert_close(model(**inputs()).logits, stock(**inputs()).logits[:, order])


@pytest.mark.parametrize(
    "changes",
    [
        {"label2id": {"neg": 0, "pos": 1}, "id2label": None},
        {"label2id": {"pos": "1", "neg": "0"}, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}},
        {"label2id": {"NEG": 0, "POS": 1}, "id2label": {"0": "0", "1": "1"}},
        {"label2id": {"LABEL_0": 0, "LABEL_1": 1}, "id2label": {"0": "neg", "1": "pos"}},
    ],
)
@torch.no_grad()
def test_label2id_names_the_outputs_where_id2label_does_not(changes, tmp_path):
    stock = saved_classifier(tmp_path, ["neg", "pos"])
    config = {key: value for key, value in read_json(tmp_path / "config.json").items() if key not in changes}
    write_json(tmp_path / "config.json", config | {key: value for key, value in changes.items() if value})
    model, _ = load_classifier(str(tmp_path), ["pos", "neg"])
    torch.testing.assert_close(model(**inputs()).logits, stock(**inputs()).logits[:, [1, 0]])


@pytest.mark.parametrize(
    "label2id", [["neg", "pos"], {"neg": 0, "pos": 0}, {"neg": 0, "pos": None}, {"neg": 1, "pos": 2}]
)
def test_a_label2id_that_makes_no_sense_is_refused_in_one_line(label2id, tmp_path):
    saved_classifier(tmp_path, ["LABEL_0", "LABEL_1"])
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | {"label2id": label2id})
    with pytest.raises(UserError, match="label2id") as refused:
        load_classifier(str(tmp_path), ["pos", "neg"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("names", "changes", "labels", "message"),
    [
        (
            ["positive", "negative", "mixed"],
            {},
            MNLI,
            "gives positive, negative, mixed.*entailment, neutral, contradiction",
        ),
        (["LABEL_1", "LABEL_0", "LABEL_2"], {}, MNLI, "gives LABEL_1, LABEL_0, LABEL_2"),
        (["neutral", "neutral", "entailment"], {}, MNLI, "gives neutral, neutral, entailment"),
        (["entailment", "neutral", "other"], {}, MNLI, "gives entailment, neutral, other"),
        (
            ["entailment", "neutral", "contradiction"],
            {"label2id": {"contradiction": 0, "neutral": 1, "entailment": 2}},
            MNLI,
            "label2id.*id2label",
        ),
        (["entailment", "neutral", "contradiction"], {"problem_type": "regression"}, MNLI, "trained for regression"),
        (["a", "b", "c"], {}, None, "not one with 1 output"),
        (["a", "b"], {}, MNLI, "not one with 3 outputs"),
    ],
)
def test_names_that_do_not_correspond_are_refused_in_one_line(names, changes, labels, message, tmp_path):
    saved_classifier(tmp_path, names)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", config | changes)
    with pytest.raises(UserError, match=message) as refused:
        load_classifier(str(tmp_path), labels)
    assert refused.value.status == 2 and "\n" not in str(refused.value)


@pytest.mark.parametrize("id2label", [["a", "b", "c"], {"0": "a", "1": "b", "5": "c"}, {"zero": "a"}, "abc"])
def test_a_config_whose_names_make_no_sense_is_refused_in_one_line(id2label, tmp_path):
    saved_classifier(tmp_path, ["a", "b", "c"])
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | {"id2label": id2label})
    with pytest.raises(UserError, match="id2label") as refused:
        load_classifier(str(tmp_path), MNLI)
    assert "\n" not in str(refused.value)


def test_a_body_without_a_head_may_have_any_names(tmp_path):
    saved_classifier(tmp_path, ["x", "y", "z"], "bert").bert.save_pretrained(tmp_path / "body")
    names = {"id2label": {"0": "x", "1": "y", "2": "z"}}
    write_json(tmp_path / "body/config.json", read_json(tmp_path / "body/config.json") | names)
    model, head = load_classifier(str(tmp_path / "body"), MNLI)
    assert head == ["classifier"] and list(model.config.id2label.values()) == list(MNLI)


@torch.no_grad()
def test_a_regression_of_one_output_needs_no_name(tmp_path):
    stock = saved_classifier(tmp_path, ["LABEL_0"], problem_type="regression")
    torch.testing.assert_close(load_classifier(str(tmp_path), None)[0](**inputs()).logits, stock(**inputs()).logits)


@pytest.mark.parametrize("method", ["lora", "bitfit", "full"])
@torch.no_grad()
def test_what_is_trained_on_a_classifier_of_another_order_opens_in_the_tasks_order(method, tmp_path):
    saved_classifier(tmp_path / "base", OTHER_ORDER, "bert")
    model, head = load_classifier(str(tmp_path / "base"), MNLI)
    model = attach(model, method, rank=2, alpha=2, head=head)
    export(model, tmp_path / "saved")
    opened = load(tmp_path / "saved", str(tmp_path / "base"))
    torch.testing.assert_close(opened(**inputs()).logits, model.eval()(**inputs()).logits)


@torch.no_grad()
def test_a_trained_adapter_opens_though_its_base_has_other_names_because_its_head_is_saved(tmp_path):
    saved_classifier(tmp_path / "base", None, "bert", num_labels=3)
    model, head = load_classifier(str(tmp_path / "base"), MNLI)
    model = attach(model, "lora", rank=2, alpha=2, head=head)
    export(model, tmp_path / "adapter")
    names = {"id2label": {"0": "x", "1": "y", "2": "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}
    write_json(tmp_path / "base/config.json", read_json(tmp_path / "base/config.json") | names)
    opened = load(tmp_path / "adapter", str(tmp_path / "base"))
    torch.testing.assert_close(opened(**inputs()).logits, model.eval()(**inputs()).logits)


def run_of(folder, method="lora"):
    """The folder of a finished MNLI run, without its training."""
    saved_classifier(folder / "base", None, "bert", num_labels=3)
    model, head = load_classifier(str(folder / "base"), MNLI)
    model = attach(model, method, rank=2, alpha=2, head=head)
    task = {"name": "mnli", "labels": list(MNLI), "columns": ["premise", "hypothesis"], "head": head, "max_length": 32}
    kind = "model" if method == "full" else "adapter"
    export(model, folder / "run" / kind, task)
    write_json(folder / "run/run.json", {"status": "finished", "model": str(folder / "base"), "task": task})
    return folder / "run" / kind / "task.json"


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["contradiction", "neutral", "entailment"]},  # the same names in another order
        {"labels": ["negative", "positive"], "name": "sst2"},  # another run's
        {"labels": None, "name": "stsb"},
        {"labels": "mnli"},
        {"labels": [0, 1, 2]},
    ],
)
def test_a_task_file_of_another_run_is_named(change, method, tmp_path):
    file = run_of(tmp_path, method)
    write_json(file, read_json(file) | change)
    for opens in (
        lambda: load(tmp_path / "run"),
        lambda: load(file.parent),
        lambda: open_classifier(str(tmp_path / "run")),
    ):
        with pytest.raises(UserError, match="task.json") as refused:
            opens()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", '{"labels"', "{}"])
def test_a_damaged_task_file_is_named(text, tmp_path):
    file = run_of(tmp_path)
    file.write_text(text)
    with pytest.raises(UserError, match="task.json"):
        load(tmp_path / "run")


def test_a_task_file_that_is_gone_is_missed(tmp_path):
    run_of(tmp_path).unlink()
    for opens in (lambda: load(tmp_path / "run"), lambda: open_classifier(str(tmp_path / "run"))):
        with pytest.raises(UserError, match="task.json"):
            opens()


def test_the_run_of_a_task_whose_own_labels_have_another_order_is_refused(tmp_path):
    file = run_of(tmp_path)
    file.with_name("checksums.json").unlink()  # the checksums would detect the change first
    record = read_json(tmp_path / "run/run.json")
    for path, whole in ((file, read_json(file)), (tmp_path / "run/run.json", record)):
        task = whole.get("task", whole)
        task["labels"] = ["contradiction", "neutral", "entailment"]
        path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="the labels .* are not those of mnli"):
        open_classifier(str(tmp_path / "run"))
