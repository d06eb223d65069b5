"""The course of one run as a figure: its loss and terms, the weights in force, and what each term adds to the loss."""

import json
from pathlib import Path

from ..errors import UserError
from ..objective import TERMS

COLOURS = {
    "loss": "#000000",
    "task": "#0072B2",
    "consistency": "#D55E00",
    "diversity": "#009E73",
    "spectrum": "#CC79A7",
}
WEIGHTS = {"consistency": "lambda1", "diversity": "lambda2", "spectrum": "lambda3"}


def draw_terms(run: str, output: str | None = None) -> Path:
    """Draw RUN/metrics.jsonl into RUN/terms.png (or `output`); returns the file. UserError when there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    source = Path(run) / "metrics.jsonl" if Path(run).is_dir() else Path(run)
    if not source.is_file():
        raise UserError(f"{source} does not exist; give the folder of a training run")
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    if not rows:
        raise UserError(f"{source} is empty: the run has logged no step")
    steps = [row["step"] for row in rows]
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), sharex=True, layout="constrained")
    panels = dict(zip(("loss and task", *TERMS[1:], "weights", "share of the loss"), axes.flat, strict=True))
    for name, axis in panels.items():
        axis.set_title(name)
        axis.grid(alpha=0.3)
    for name in ("loss", "task"):
        panels["loss and task"].plot(steps, [row[name] for row in rows], color=COLOURS[name], label=name)
    for name, weight in WEIGHTS.items():
        values = [row[name] if row[name] is not None else float("nan") for row in rows]
        panels[name].plot(steps, values, color=COLOURS[name], marker=".", markersize=3)
        style = "--" if name == "spectrum" else "-"  # lambda2 and lambda3 often lie on each other
        panels["weights"].plot(
            steps, [row[weight] for row in rows], style, color=COLOURS[name], label=f"{weight} ({name})"
        )
        added = [row[weight] * value for row, value in zip(rows, values, strict=True)]
        panels["share of the loss"].plot(steps, added, color=COLOURS[name], label=f"{weight} · {name}")
    panels["loss and task"].set_ylabel("nats per token")
    panels["consistency"].set_ylabel("T² · KL, nats")
    panels["diversity"].set_ylabel("−entropy, nats")
    panels["spectrum"].set_ylabel("−ratio")
    for name in ("loss and task", "weights", "share of the loss"):
        panels[name].legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("optimiser step")
    path = Path(output) if output else source.parent / "terms.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
