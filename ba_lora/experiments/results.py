"""The measurements of each run as one JSON object: the source of tables, figures and the report.

    {"model": "llama-2-7b", "method": "ba-lora", "varied": ["rank", "4"], "data": "metamath", "seed": 42,
     "scores": {"gsm8k": {"score": 0.545, "n": 1319, "metric": "accuracy", "protocol": "ba-lora 2", "data_hash": "…",
                          "correct": "0110…"}},
     "measures": {"text_loss": 0.71, …}, "training": {"learning_rate": 2e-5, "seconds": 16000, …}, "curves": {…},
     "provenance": {…}}

`scores` has one entry per column of the table. Required: model, method, seed, and a score with n, protocol and data_hash; the
rest is shown if present. `collect` writes them from the run folders of an experiment into results/NAME/results.jsonl, one line per
run. The results are committed, the runs are not. A result from another machine is another line, or a file NAME/*.json of its own.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval.all import GENERATED

from ..errors import UserError, short
from ..files import atomic_write, check_kinds, digest, read_json, read_json_lines, sealed, unsealed, write_sealed
from ..folders import checksums
from ..folders.ownership import claimed
from ..objective.settings import METRICS, TERMS, WEIGHTS, of_training
from .item_values import items_of, of_given_texts
from .matrix import Experiment, Run, Variant
from .tables.columns import COSTS, MEASURES, NO_COLUMNS

RESULTS = "results.jsonl"
CURVE = 24  # number of steps kept of a run's curve
CURVES = ("loss", *TERMS, *WEIGHTS, "lr")
TRAINING = ("trained_parameters", "train_seconds", "peak_memory", "steps", "processes")
SCORES = ("score", "n", "metric", "protocol", "data_hash")

AGAIN = "put it back from a copy, or collect it again"
KINDS_OF_A_RESULT = {
    **{"model": "a text", "method": "a text", "seed?": "a whole number", "scores": "an object", "data?": "a text"},
    **{"varied?": "a list of texts", "experiment?": "a text"},
    **{"measures?": "an object", "training?": "an object", "curves?": "an object", "provenance?": "an object"},
}
KINDS_OF_A_SCORE = {
    **{"score?": "a number", "n": "a whole number", "correct?": "a text", "items?": "a text", "ability?": "an object"},
} | dict.fromkeys(("metric", "protocol", "data_hash"), "a text")
NUMBERS_OF_PARTS = {  # each a number or, for classifiers, a number for each evaluation
    "measures": [column.key for column in MEASURES],
    "training": [*(column.key for column in COSTS), "learning_rate"],
}


@dataclass(frozen=True)
class Score:
    """The result in one column. score: a fraction, or 1 to 10 for MT-Bench, or a loss; correct: (n,) of 0 and 1, if items are right or wrong.

    Of given texts: items: what each item contributes to the score, NaN for one that does not count; ability: what the model can do at all.
    """

    score: float | None
    n: int
    metric: str
    protocol: str
    data_hash: str
    correct: np.ndarray | None = None
    items: np.ndarray | None = None
    ability: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The measurements of one run. source: where they were read from."""

    source: str
    variant: Variant
    data: str | None
    seed: int | None
    scores: dict[str, Score]
    measures: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    curves: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)


def read_results(experiment: Experiment, results: str | Path | None = "results") -> list[Result]:
    """Return the measurements of the run folders and, for runs that are not here, of `results`/NAME (None: only the run folders).

    Raises UserError for a file that is not a result, and for one that is not comparable with the others in its column.
    """
    here = [of_run(run, experiment) for run in experiment.runs if run.state(experiment.evaluations) == "measured"]
    known = {_identity(each) for each in here}
    found = [_result(content, str(experiment.home)) for content in here]
    for source, content in _read(Path(results) / experiment.name) if results else ():
        if content.get("experiment", experiment.name) != experiment.name:
            raise UserError(f"{source} is a result of {content['experiment']}, not of {experiment.name}; remove it")
        if _identity(content) not in known:
            found.append(_result(content, source))
    _check_once(found)
    _check_columns(found)
    place = {variant: number for number, variant in enumerate(experiment.variants)}
    return sorted(found, key=lambda result: place.get(result.variant, len(place)))


def missing(experiment: Experiment, results: str | Path = "results") -> Experiment:
    """Return the experiment with the runs that `results`/NAME does not hold.

    A run is held if a line has its place in the matrix, its learning rate and all its scores.
    """
    held = {_identity(content): content for _, content in _read(Path(results) / experiment.name)}

    def is_held(run: Run) -> bool:
        variant = run.variant
        content = held.get((variant.model, run.data, variant.method, variant.varied, run.seed))
        if (
            content is None
            or not {evaluation.name for evaluation in experiment.evaluations} <= content["scores"].keys()
        ):
            return False
        return not run.arguments or content["training"].get("learning_rate") == run.arguments.learning_rate

    return replace(experiment, runs=[run for run in experiment.runs if not is_held(run)])


def collect(experiment: Experiment, results: str | Path = "results") -> list[Path]:
    """Write a line per measured run into `results`/NAME/results.jsonl, and the tuning; return the files.

    Lines of other runs are kept. UserError if the folder is not ours.
    """
    folder, files = Path(results) / experiment.name, []
    with claimed(folder, "results", "--results"):
        measured = [run for run in experiment.runs if run.state(experiment.evaluations) == "measured"]
        made = [{"experiment": experiment.name} | of_run(run, experiment) for run in measured]
        if made:
            before = [content for _, content in _read(folder)]
            lines = {_identity(content): content for content in (*before, *made)}
            files.append(folder / RESULTS)
            with atomic_write(files[-1]) as file:
                for key in sorted(lines, key=str):
                    file.write(json.dumps(sealed(lines[key]), ensure_ascii=False) + "\n")
            for run in experiment.runs:  # an earlier version wrote a file per run
                (folder / f"{run.name}.json").unlink(missing_ok=True)
        tuning = experiment.home.parent / experiment.name / "tuning.json"
        if experiment.tuning and tuning.is_file():
            files.append(folder / tuning.name)
            write_sealed(files[-1], read_json(tuning))
    return files


def of_run(run: Run, experiment: Experiment) -> dict:
    """Return the content of a measured run's file."""
    measures = run.folder / "measures.json"
    measured = read_json(measures) if measures.is_file() else {}
    record = read_json(run.folder / "run.json") if run.arguments else {}
    checksums.check_weights(measured, run.folder, measures)
    if run.arguments:
        checksums.check_of_run(run.folder, "metrics.jsonl")
    training = {key: record[key] for key in TRAINING if key in record}
    if run.arguments:
        training |= {"learning_rate": run.arguments.learning_rate, "tuned": run.is_tuned}
        training |= {"rank": run.arguments.rank, "effective_batch_size": run.arguments.effective_batch_size}
        training |= {"data_hash": record["data"].get("hash") if "data" in record else None}
    names = [evaluation.name for evaluation in experiment.evaluations]
    kept = [*(column.key for column in MEASURES), *NO_COLUMNS]
    is_point = bool(run.variant.varied)  # a point of a curve over an option, which needs only scores
    return {
        "model": run.variant.model,
        "method": run.method,
        "varied": list(run.variant.varied) if run.variant.varied else None,
        "data": run.data,
        "seed": run.seed,
        "scores": {name: _score_of(run.folder / "eval" / name, run.folder) for name in names}
        or _benchmarks(run.folder / "eval"),
        "measures": {key: measured[key] for key in kept if key in measured and not (is_point and key == "spectra")},
        "training": training,
        "curves": {} if is_point else _curves(run.folder / "metrics.jsonl"),
        "provenance": {key: record[key] for key in ("commit", "versions", "machine") if key in record},
    }


def _benchmarks(folder: Path) -> dict:
    """Return the scores of a run's benchmarks, one column each: for GLUE the task, out of domain TASK-SET, for generated problems
    their name."""
    scores = {}
    for file in sorted(folder.glob("*/score.json")) + sorted(folder.glob("gluex/*/score.json")):
        benchmark = read_json(file)["benchmark"]
        name = GENERATED if benchmark == GENERATED else benchmark.partition("/")[2]
        if file.parent.name == "glue-validation_mismatched":
            name = f"{name}-mm"
        scores[name or file.parent.name] = _score_of(file.parent, folder.parent)
    return scores


def _score_of(folder: Path, run: Path) -> dict:
    """Return the score in an evaluation's folder, with the hash of its problems and the outcome of each."""
    if not (folder / "score.json").is_file():
        raise UserError(
            f"{folder / 'score.json'} is missing; put it back from a copy, or measure the run again with --overwrite"
        )
    made = checksums.read_record(folder / "score.json", keys=("metric", "n"))
    checksums.check_weights(made, run, folder / "score.json")
    value = made.get("score", made.get(made["metric"]))
    protocol = f"{made.get('protocol', 'classification')} {made.get('protocol_version', '1')}"
    score = {"score": value, "n": made["n"], "metric": made["metric"], "protocol": protocol}
    if "item_measure" in made:
        return score | of_given_texts(made, folder)
    lines = folder / "generations.jsonl", folder / "predictions.jsonl"
    asked = next((read_json_lines(file, {"id": "a text or a number"}) for file in lines if file.is_file()), [])
    score["data_hash"] = digest([[str(each["id"]), each.get("reference", each.get("label"))] for each in asked])
    if (folder / "scored.jsonl").is_file():
        outcomes = [each.get("correct") for each in read_json_lines(folder / "scored.jsonl")]
        if all(outcome in (0, 1) for outcome in outcomes):
            score["correct"] = "".join(str(int(outcome)) for outcome in outcomes)
    return score


def _curves(file: Path) -> dict:
    """Return {name: values} at up to CURVE of the logged steps, including the first and the last."""
    rows = of_training(read_json_lines(file, METRICS)) if file.is_file() else []
    if len(rows) > CURVE:
        rows = [rows[round(place)] for place in np.linspace(0, len(rows) - 1, CURVE)]
    kept = {"step": [row["step"] for row in rows]} if rows else {}
    return kept | {name: [_rounded(row.get(name)) for row in rows] for name in CURVES if rows}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _varied(content: dict) -> tuple | None:
    return tuple(content["varied"]) if content.get("varied") else None


def _identity(content: dict) -> tuple:
    """The key of a result; no two results share it."""
    return content["model"], content["data"], content["method"], _varied(content), content["seed"]


def _read(folder: Path) -> Iterator[tuple[str, dict]]:
    """(source, content) of each result in a folder. Raises UserError naming the file, the line, and what is missing."""
    for file in sorted(folder.glob("*.json")):
        if file.name != "tuning.json" and not file.name.startswith("."):
            yield str(file), _checked(read_json(file), str(file))
    if (folder / RESULTS).is_file():
        lines = (folder / RESULTS).read_bytes().removesuffix(b"\n").split(b"\n")
        if lines == [b""]:
            raise UserError(f"{folder / RESULTS} is empty; put it back from a copy or remove it")
        for number, line in enumerate(lines, 1):
            place = f"{folder / RESULTS}, line {number}"
            yield place, _checked(unsealed(line, place), place)


def _checked(content: dict, source: str) -> dict:
    """Return a result whose keys and values are those of the module docstring. Raises UserError naming the first that is not."""
    for key in ("model", "method", "seed", "scores"):
        if key not in content:
            raise UserError(f"{source} has no '{key}'; a result needs model, method, seed and scores")
    check_kinds(content, source, KINDS_OF_A_RESULT, AGAIN)
    varied = content.get("varied")
    if varied is not None and len(varied) != 2:
        raise UserError(f"{source}: 'varied' is {short(varied)}, an option and its value are needed; {AGAIN}")
    for name, score in content["scores"].items():
        place = f"{source}: the score of {name}"
        if not isinstance(score, dict):
            raise UserError(f"{place} is {short(score)}; it needs {', '.join(SCORES)}")
        for key in SCORES:
            if key not in score:
                raise UserError(f"{place} has no '{key}'; it needs {', '.join(SCORES)}")
        check_kinds(score, place, KINDS_OF_A_SCORE, AGAIN)
        if set(score.get("correct") or "") - {"0", "1"}:
            raise UserError(
                f"{place}: 'correct' is {short(score['correct'])}, a 0 or 1 for each item is needed; {AGAIN}"
            )
        if score.get("correct") is not None and len(score["correct"]) != score["n"]:
            raise UserError(f"{place} has n {score['n']} and {len(score['correct'])} outcomes in 'correct'; {AGAIN}")
    for name, keys in NUMBERS_OF_PARTS.items():
        part = content.get(name) or {}
        kinds = {f"{key}?": "an object of numbers" if isinstance(part.get(key), dict) else "a number" for key in keys}
        check_kinds(part, f"{source}: {name}", kinds, AGAIN)
    return {"data": None, "varied": None} | content


def _result(content: dict, source: str) -> Result:
    scores = {}
    for name, made in content["scores"].items():
        correct = made.get("correct")
        correct = None if correct is None else np.array([int(each) for each in correct])
        items = None if made.get("items") is None else items_of(made["items"])
        scores[name] = Score(*(made[key] for key in SCORES), correct, items, made.get("ability") or {})
    variant = Variant(content["model"], content["method"], _varied(content))
    parts = {key: content.get(key) or {} for key in ("measures", "training", "curves", "provenance")}
    return Result(source, variant, content["data"], content["seed"], scores, **parts)


def _check_once(results: list[Result]) -> None:
    """Refuse a duplicate result, for example a copy under another name."""
    seen = {}
    for result in results:
        key = (result.variant, result.data, result.seed)
        if result.seed is not None and key in seen:
            raise UserError(
                f"{result.source} and {seen[key]} hold the same result ({result.variant.method}, seed {result.seed}); remove one"
            )
        seen[key] = result.source


def _check_columns(results: list[Result]) -> None:
    """Refuse a result whose protocol or problems differ from those of most results in its column."""
    for name in {name for result in results for name in result.scores}:
        there = [(result, result.scores[name]) for result in results if name in result.scores]
        for what, of in (
            ("protocol", lambda s: s.protocol),
            ("data hash", lambda s: s.data_hash),
            ("metric", lambda s: s.metric),
        ):
            usual = Counter(of(score) for _, score in there).most_common(1)[0][0]
            for result, score in there:
                if of(score) != usual:
                    label = f"{result.variant.method}, seed {result.seed}"
                    raise UserError(
                        f"{result.source} ({label}): {name} has {what} '{of(score)}', the other results '{usual}'; they are not "
                        f"comparable: score it again (--rescore, --data) or remove the file"
                    )
