"""Each method's learning rate, chosen on validation problems under one budget: the same grid, seed and steps for all."""

from ..files import read_json, write_json
from .matrix import tuning_runs
from .pool import run_all


def tune(file: str, runs: str, jobs: int, overwrite: bool) -> int:
    """Run the grid of `file`, print every score and the best rate of each method; returns 1 when a run failed.

    The choice is the highest validation accuracy; of equal ones, the smaller rate.
    """
    experiment = tuning_runs(file, runs)
    failed = run_all(experiment, jobs, overwrite)
    scores: dict[str, dict[float, float]] = {}
    for run in experiment.runs:
        if run not in failed:
            score = read_json(run.folder / "measures.json")["scores"]["validation"]
            scores.setdefault(run.method, {})[run.arguments.learning_rate] = score
    best = {method: max(sorted(rates), key=rates.get) for method, rates in scores.items()}
    print(f"\nvalidation accuracy in percent, seed {experiment.seeds[0]}, {experiment.tuning['limit']} problems")
    for method, rates in scores.items():
        row = "  ".join(f"{rate:g}: {100 * score:.1f}" for rate, score in sorted(rates.items()))
        print(f"{method:12} {row}   best: {best[method]:g}")
    folder = experiment.runs[0].folder.parent
    write_json(folder / "tuning.json", {"scores": scores, "best": best})
    print(f"Saved as {folder / 'tuning.json'}; the best rates belong in {file}")
    return 1 if failed else 0
