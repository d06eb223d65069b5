"""Chooses each method's learning rate on validation problems under one budget: as many rates, and the same seed and steps for all."""

from pathlib import Path

from ..errors import UserError
from ..files import read_json, write_sealed
from ..folders.ownership import claimed, refuse_foreign
from .given_texts import is_loss
from .matrix import tuning_runs
from .pool import run_all


def tune(
    file: str, runs: str, jobs: int, overwrite: bool = False, retry: bool = False, changes: dict | None = None
) -> Path:
    """Run the grid of `file`, print every score and the best rate of each method, and write RUNS/NAME/tuning.json.

    The choice is the highest validation accuracy, or the lowest held-out loss; ties go to the smaller rate. A rate at which a run diverged has no score.
    changes: options of every run that override the file's. Raises UserError if a method has no score at all.
    """
    experiment = tuning_runs(file, runs, changes)
    path = Path(runs) / experiment.name / "tuning.json"
    refuse_foreign(path.parent, "experiment", "--runs")
    with claimed(experiment.home, "experiment", "--runs"):
        failed = run_all(experiment, jobs, overwrite, retry)
    scores: dict[str, dict[str, float | None]] = {}
    for run in experiment.runs:
        score = None if run in failed else read_json(run.folder / "measures.json")["scores"]["validation"]
        scores.setdefault(run.name.rpartition("-lr")[0], {})[f"{run.arguments.learning_rate:g}"] = score
    best, lowest = {}, is_loss(experiment.tuning["data"])
    for group, rates in scores.items():
        there = {rate: score for rate, score in rates.items() if score is not None}
        if not there:
            raise UserError(f"no learning rate of {group} has a score; see {experiment.home}, then tune with --retry")
        best[group] = float((min if lowest else max)(sorted(there, key=float), key=there.get))
    seed, limit = experiment.seeds[0], experiment.tuning.get("limit", "all")
    print(
        f"\nheld-out loss in nats, seed {seed}"
        if lowest
        else f"\nvalidation accuracy in percent, seed {seed}, {limit} problems"
    )
    for group, rates in scores.items():
        shown = {rate: _shown(score, lowest) for rate, score in rates.items()}
        row = "  ".join(f"{rate}: {shown[rate]}" for rate in sorted(rates, key=float))
        print(f"{group:12} {row}   best: {best[group]:g}")
    with claimed(path.parent, "experiment", "--runs", alone=False):
        write_sealed(path, {"experiment": experiment.name, **experiment.tuning, "scores": scores, "best": best})
    print(f"Saved as {path}")
    return path


def _shown(score: float | None, is_loss: bool) -> str:
    return "failed" if score is None else f"{score:.4f}" if is_loss else f"{100 * score:.1f}"
