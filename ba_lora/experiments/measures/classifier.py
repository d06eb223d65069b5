"""Measures a classifier: its metrics on a split of its task ("split:test") or out of domain ("shift:products")."""

import json
from pathlib import Path

import numpy as np

from ...data.glue import Examples, load_examples
from ...errors import UserError
from ...features.tsne import FINAL, NEIGHBOURS, features_file, labels_file, read_features, scores
from ...files import atomic_write, read_json, write_sealed
from ...folders import checksums
from ..matrix import Evaluation, Run


def measure_classifier(run: Run, evaluations: list[Evaluation], extra: dict, report=lambda fraction: None) -> dict:
    """Measure a finished run, write its measures.json and eval/NAME/, and return the measures.

    scores: the task's headline metric. Also: macro-F1, the recall of the rarest class in the set, the share of the most common
    class (the accuracy of always predicting it), and, if the run saved its features, how well the classes separate.
    """
    from eval.classifiers import classify, metrics

    classifier = classify.open_classifier(str(run.folder))
    data = read_json(run.folder / "run.json")["task"]["data"]
    measures = {"method": run.method, "seed": run.seed} | run.measured_with(evaluations)
    measures["weights"] = checksums.weights_of_run(run.folder)
    measures |= {name: {} for name in ("scores", "accuracy", "macro_f1", "rarest_recall", "majority", "ece")}
    for number, evaluation in enumerate(evaluations):
        examples = _examples(classifier.task, evaluation, data)
        logits, _ = classify.predict(classifier, examples, batch_size=128)
        computed = metrics.compute(classifier.task, logits, examples.labels)
        folder = run.folder / "eval" / evaluation.name
        folder.mkdir(parents=True, exist_ok=True)
        classify.write_predictions(folder, examples, logits)
        headline = classifier.task.metrics[0]
        measures["scores"][evaluation.name] = computed[headline]
        if classifier.task.labels:
            _add_classes(measures, evaluation.name, computed, logits, np.array(examples.labels), folder)
        score = {"benchmark": evaluation.name, "metric": headline, **computed, "weights": measures["weights"]}
        checksums.write_record(folder / "score.json", score, (classify.PREDICTIONS, "scored.jsonl"))
        report((number + 1) / len(evaluations))
    if classifier.task.labels:
        measures |= _separation(run.folder / "features")
    measures |= extra
    write_sealed(run.folder / "measures.json", measures)
    return measures


def _add_classes(measures: dict, name: str, computed: dict, logits: np.ndarray, labels: np.ndarray, folder) -> None:
    correct = logits.argmax(1) == labels
    with atomic_write(folder / "scored.jsonl") as file:
        file.writelines(json.dumps({"correct": bool(right)}) + "\n" for right in correct)
    counts = np.bincount(labels, minlength=logits.shape[1])
    rarest = min((label for label in range(len(counts)) if counts[label]), key=lambda label: counts[label])
    measures["accuracy"][name], measures["macro_f1"][name] = float(correct.mean()), computed["macro_f1"]
    measures["rarest_recall"][name] = float(correct[labels == rarest].mean())
    measures["majority"][name], measures["ece"][name] = float(counts.max() / len(labels)), computed["ece"]


def _separation(folder: Path) -> dict[str, float]:
    """Return silhouette and kNN purity of the last hidden layer at the end; {} without features, with too few, or with one class."""
    if not features_file(folder, FINAL).is_file():
        return {}
    checksums.verify(folder)
    labels = np.load(labels_file(folder, FINAL))
    if len(labels) <= NEIGHBOURS or labels.min() == labels.max():
        return {}
    found = scores(*read_features(folder, FINAL))
    return {name: found[name] for name in ("silhouette", "knn_purity")}


def _examples(task, evaluation: Evaluation, data: str | None) -> Examples:
    from ...data.gluex import SHIFTS, load_shift

    kind, _, name = evaluation.data.partition(":")
    if kind == "split":
        return load_examples(task.name, name, data, evaluation.limit)
    shifts = {shift.name: shift for shift in SHIFTS.get(task.name, ())}
    if kind != "shift" or name not in shifts:
        known = ", ".join(["split:test", *(f"shift:{name}" for name in shifts)])
        raise UserError(f"evaluation '{evaluation.data}' is not one of: {known}")
    examples = load_shift(shifts[name], None)
    return examples if evaluation.limit is None else examples.first(evaluation.limit)
