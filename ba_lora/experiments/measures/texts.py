"""Measures a run on given texts (`given_texts`): each evaluation goes to eval/NAME of the run, and continues there after a kill."""

import importlib
from pathlib import Path

from eval.all import BIAS
from eval.harness.scores import SCORE, SCORED

from ...errors import UserError
from ...files import read_json, write_sealed
from ...folders.checksums import read_record, weights_of_run
from ..given_texts import BENCHMARK, HELD_OUT, RETENTION, SOLUTIONS
from ..matrix import Evaluation, Run
from .solutions import measure_solutions


def measure_texts(run: Run, evaluations: list[Evaluation], extra: dict, report=lambda fraction: None) -> dict:
    """Measure a finished run (or the base model), write its measures.json and eval/NAME/, and return the measures.

    extra: figures of the training. report: called with the fraction done. measures.json also has the loss on the held-out texts of
    the benchmarks, which stands beside their scores.
    """
    measures = {"method": run.method, "seed": run.seed, **run.measured_with(evaluations), "scores": {}}
    measures |= {"weights": weights_of_run(run.folder) if run.arguments else None, **extra}
    for number, evaluation in enumerate(evaluations):
        kind, _, rest = evaluation.data.partition(":")
        score = MEASURES[kind](run, evaluation, rest, run.folder / "eval" / evaluation.name)
        measures["scores"][evaluation.name] = score["score"]
        if "ability" in score:
            measures["held_out_loss"] = score["ability"]["held_out"]["loss"]
        report((number + 1) / len(evaluations))
    write_sealed(run.folder / "measures.json", measures)
    return measures


def _held_out(run: Run, evaluation: Evaluation, rest: str, folder: Path) -> dict:
    """The loss on the run's own held-out rows, which the training has computed."""
    found = read_json(run.folder / "run.json").get("validation") if run.arguments else None
    if not found:
        raise UserError(f"{run.name} has no held-out rows; give its config validation_share or validation_data")
    return {"score": found["last"]["task"]}


def _benchmark(run: Run, evaluation: Evaluation, rest: str, folder: Path) -> dict:
    name, _, half = rest.partition(":")
    words = [*(["--half", half] if half else []), *(["--limit", str(evaluation.limit)] if evaluation.limit else [])]
    return _command(BIAS[name].module, run, folder, words)


def _retention(run: Run, evaluation: Evaluation, rest: str, folder: Path) -> dict:
    """A base is compared with itself, so that its row says 0."""
    return _command("eval.retention", run, folder, [] if run.arguments else ["--base", run.model])


def _command(module: str, run: Run, folder: Path, words: list[str]) -> dict:
    """Run an evaluation by its command → its score.json. Lines that are there already, of these weights and options, are kept."""
    for name in (SCORED, SCORE):
        (folder / name).unlink(missing_ok=True)
    model = str(run.folder) if run.arguments else run.model
    importlib.import_module(module).main(["--model", model, "--output_dir", str(folder), *words])
    return read_record(folder / SCORE)


MEASURES = {BENCHMARK: _benchmark, RETENTION: _retention, SOLUTIONS: measure_solutions, HELD_OUT: _held_out}
