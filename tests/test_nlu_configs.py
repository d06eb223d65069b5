"""Every recipe of classification plans for every method, and has the published hyperparameters."""

from pathlib import Path

import pytest

from ba_lora.methods.names import METHODS
from ba_lora.planning.plan import plan
from ba_lora.training.command_line import parse

FOLDER = Path(__file__).parent.parent / "configs" / "nlu"
MODELS = ("deberta-v3-base", "roberta-large", "bert-large", "gpt2-xl")
TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
DEBERTA = {  # epochs, batch, learning rate, alpha
    "mnli": (5, 16, 5e-4, 8),
    "sst2": (20, 16, 3e-5, 8),
    "mrpc": (20, 32, 2e-4, 8),
    "cola": (20, 16, 1e-4, 8),
    "qnli": (10, 32, 1e-4, 16),
    "qqp": (10, 16, 1e-4, 8),
    "rte": (50, 16, 1e-4, 8),
    "stsb": (20, 8, 3e-4, 8),
}
STEPS = {"mnli": 122_720, "cola": 10_700, "stsb": 14_380}  # DeBERTa: epochs · ⌈rows / batch⌉


def planned(model, task, *words):
    return plan(parse(["--config", str(FOLDER / f"{model}-{task}.yaml"), "--dry_run", *words]), memory=False)


def test_there_is_a_recipe_for_every_model_and_task():
    names = {f"{model}-{task}" for model in MODELS for task in TASKS}
    assert {file.stem for file in FOLDER.glob("*.yaml")} == names | {
        "tsne-bert-large",
        "tsne-gpt2-xl",
        "tsne-reviews",
        "reviews",
        "minilm-cola",
    }


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_plans(file):
    made = plan(parse(["--config", str(file), "--dry_run"]), memory=False)
    assert made["steps"] > 0 and set(made["benchmarks"]) <= {"glue", "gluex"}
    assert (made["benchmarks"] == []) == file.stem.startswith("tsne")
    assert (made["launcher"], made["deepspeed"]) == (None, None)
    evaluation = {"backend": "transformers", "processes": 1, "reason": None}
    assert made["evaluation"] == (evaluation if made["benchmarks"] else None)


@pytest.mark.parametrize("task", TASKS)
def test_deberta_has_the_published_hyperparameters(task):
    made = parse(["--config", str(FOLDER / f"deberta-v3-base-{task}.yaml"), "--dry_run"])
    rates = (made.epochs, made.effective_batch_size, made.learning_rate, made.alpha)
    assert rates == DEBERTA[task] and made.rank == 8 and made.lr_scheduler == "linear"
    assert made.micro_batch_size == made.effective_batch_size  # the statistics cover the whole batch
    assert (made.objective().lambda1, made.objective().svd_k) == (0.15, 5)


@pytest.mark.parametrize("task", STEPS)
def test_the_steps_follow_from_the_published_sizes(task):
    assert planned("deberta-v3-base", task)["steps"] == STEPS[task]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "model", [pytest.param(each, marks=() if each == MODELS[0] else pytest.mark.slow) for each in MODELS]
)
def test_every_method_plans(model, method):
    made = planned(model, "cola", "--method", method)
    assert made["task"] == "cola" and made["steps"] > 0
    assert 0 < made["trainable_parameters"] <= made["parameters"]


@pytest.mark.slow  # builds three heads per row: half a minute
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_all_tasks_of_a_row_plan(model, method):
    trained = set()
    for task in TASKS:
        made = planned(model, task, "--method", method, "--rank", "8")  # bert-large-sst2 has its own
        outputs = {"mnli": 3, "stsb": 1}.get(task, 2)
        trained.add((outputs, made["trainable_parameters"]))
        assert made["task"] == task and made["steps"] > 0
    assert len(trained) == 3  # tasks differ only in the width of the head


def test_the_adapter_of_deberta_is_the_printed_one():
    head = 768 * 768 + 768 + 2 * 768 + 2  # pooler and classifier, trained in addition
    assert planned("deberta-v3-base", "cola")["trainable_parameters"] == 1_327_104 + head
