"""The results of an experiment as a Markdown table, with what they show and what they do not."""

import json
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import atomic_write, read_json
from .matrix import Experiment, Run
from .statistics import mean_sd, paired_interval

EXAMPLES = 3  # problems shown with each model's answer


def make_table(experiment: Experiment) -> str:
    """The whole report in Markdown. Raises UserError when nothing of the experiment has been measured."""
    results = {}
    for run in experiment.runs:
        if run.state(experiment.evaluations) == "measured":
            results.setdefault(run.method, []).append((run, read_json(run.folder / "measures.json")))
    if not results:
        raise UserError(f"no run of {experiment.file} has been measured; start with: python -m ba_lora.experiments run")
    parts = [f"# {experiment.name}", _rows(experiment, results), _notes(experiment, results)]
    parts += [_comparisons(experiment, results), _examples(experiment, results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_table(experiment: Experiment) -> tuple[str, Path]:
    """Make the table and save it beside the runs; returns it and its path."""
    text = make_table(experiment)
    path = experiment.runs[0].folder.parent / "table.md"
    with atomic_write(path) as file:
        file.write(text)
    return text, path


def _cell(values: list[float | None], scale: float, digits: int) -> str:
    values = [value * scale for value in values if value is not None]
    if not values:
        return "–"
    mean, sd = mean_sd(values)
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")


# The columns behind the scores: title, key in measures.json, scale, digits. A classifier's are of the first evaluation.
GENERATOR = (("text loss", "text_loss", 1, 3), ("KL to base", "kl_to_base", 1, 3))
CLASSIFIER = (
    ("macro-F1 %", "macro_f1", 100, 1),
    ("rarest class's recall %", "rarest_recall", 100, 1),
    ("calibration error %", "ece", 100, 1),
)


def _is_classifier(results: dict) -> bool:
    return "accuracy" in next(iter(results.values()))[0][1]


def _of(value: float | dict | None, name: str) -> float | None:
    return value.get(name) if isinstance(value, dict) else value


def _rows(experiment: Experiment, results: dict) -> str:
    names = [evaluation.name for evaluation in experiment.evaluations]
    kinds = CLASSIFIER if _is_classifier(results) else GENERATOR
    head = ["method", *(f"{name} %" for name in names), *(title for title, *_ in kinds)]
    head += ["learning rate", "trained parameters", "train s", "peak GB"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for method, runs in results.items():
        measures = [measured for _, measured in runs]
        cells = [method, *(_cell([m["scores"][name] for m in measures], 100, 1) for name in names)]
        cells += [_cell([_of(m[key], names[0]) for m in measures], scale, digits) for _, key, scale, digits in kinds]
        arguments, parameters = runs[0][0].arguments, measures[0].get("trained_parameters", 0)
        cells += [f"{arguments.learning_rate:g}" if arguments else "–", f"{parameters:,}"]
        cells += [_cell([m.get("train_seconds") for m in measures], 1, 0)]
        cells += [_cell([m.get("peak_memory") for m in measures], 1e-9, 2)]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _notes(experiment: Experiment, results: dict) -> str:
    seeds = ", ".join(str(seed) for seed in experiment.seeds)
    if _is_classifier(results):
        return _classifier_notes(experiment, next(iter(results.values()))[0][1], seeds)
    problems = "; ".join(f"{e.name}: {e.limit} problems of {e.data}" for e in experiment.evaluations)
    return (
        f"Mean ± standard deviation over the seeds {seeds}; the base is one model. Accuracy in percent ({problems}). "
        "Text loss: nats per token on held-out pre-training text, higher is more forgotten. "
        "KL to base: mean KL(base ‖ model) on the response tokens of test problems, nats per token. "
        "Peak: resident memory of the training process, libraries included."
    )


def _classifier_notes(experiment: Experiment, measured: dict, seeds: str) -> str:
    first = experiment.evaluations[0].name
    shares = ", ".join(f"{name} {100 * share:.1f}" for name, share in measured["majority"].items())
    guess = f" The commonest class alone would be right in (%): {shares}." if shares else ""
    arguments = experiment.runs[0].arguments
    return (
        f"Mean ± standard deviation over the seeds {seeds}. The task's headline metric in percent; macro-F1, recall and "
        f"calibration error (15 bins) on {first}.{guess} {arguments.model} on {arguments.task}, "
        f"{arguments.max_steps if arguments.max_steps > 0 else f'{arguments.epochs:g} epochs,'} steps of "
        f"{arguments.effective_batch_size}. Peak: resident memory of the training process, libraries included."
    ).replace("epochs, steps", "epochs in steps")


def correctness(run: Run, name: str) -> np.ndarray:
    """(problems,) of 0 and 1, in the order of the problems, of one evaluation of one run."""
    with open(run.folder / "eval" / name / "scored.jsonl", encoding="utf-8") as file:
        return np.array([json.loads(line)["correct"] for line in file], dtype=int)


def _comparisons(experiment: Experiment, results: dict) -> str:
    ours = experiment.compare.get("method")
    name = experiment.evaluations[0].name
    if ours not in results or not (results[ours][0][0].folder / "eval" / name / "scored.jsonl").is_file():
        return ""
    what = f"accuracy on {name}" if _is_classifier(results) else name
    lines = [f"Differences on {what}, in points, with the paired 95% bootstrap interval over problems and seeds:", ""]
    apart = []
    for other in experiment.compare.get("against", []):
        if other not in results:
            continue
        by_seed = [{run.seed: correctness(run, name) for run, _ in results[method]} for method in (ours, other)]
        shared = sorted(set(by_seed[0]) & set(by_seed[1]))
        if not shared:
            continue
        pair = [np.stack([correct[seed] for seed in shared]) for correct in by_seed]
        difference, low, high = (100 * value for value in paired_interval(*pair))
        verdict = "this run does not tell them apart" if low <= 0 <= high else "the interval excludes 0"
        apart.append(not low <= 0 <= high)
        lines.append(f"- {ours} − {other}: {difference:+.1f} [{low:+.1f}, {high:+.1f}]: {verdict}")
    base = [m["scores"][name] for _, m in results.get("base", [])]
    shows = f"What this shows: the whole chain runs, from data to table, at a size where {ours} learns the task"
    if base:
        mean = mean_sd([m["scores"][name] for _, m in results[ours]])[0]
        shows += f" ({100 * (mean - base[0]):+.1f} points over the base)"
    shows += ". What it does not show: that one method is better than another on a real model. "
    if not all(apart):
        shows += "Differences between the methods here may be noise. "
    shows += (
        "The intervals do not cover how the learning rates were chosen: that is a source of differences of its own. "
    )
    kind = (
        "One small encoder, one task"
        if _is_classifier(results)
        else "One model of about 2M parameters, one generated task"
    )
    shows += f"{kind}, {len(experiment.seeds)} seed(s)."
    return "\n".join([*lines, "", shows])


def _examples(experiment: Experiment, results: dict) -> str:
    """The first problems of the test set, with the answer of each method's first seed."""
    if _is_classifier(results):
        return ""
    name = experiment.evaluations[0].name
    answers = {}
    for method, runs in results.items():
        with open(runs[0][0].folder / "eval" / name / "generations.jsonl", encoding="utf-8") as file:
            answers[method] = [json.loads(line) for line, _ in zip(file, range(EXAMPLES), strict=False)]
    correct = {method: correctness(runs[0][0], name) for method, runs in results.items()}
    lines = ["Three test problems (the first of the set) and each model's answer, first seed:"]
    for index, first in enumerate(next(iter(answers.values()))):
        lines += ["", f"**{first['prompt'].strip()}**", "", f"- reference: {first['reference']}"]
        for method, records in answers.items():
            mark = "right" if correct[method][index] else "wrong"
            lines.append(f"- {method} ({mark}): {' '.join(records[index]['completion'].split())}")
    return "\n".join(lines)
