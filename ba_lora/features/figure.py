"""Draw the panels of t-SNE figures: classes by colour and shape; the title gives their separation in the original space."""

from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..canvas import save, style

FINAL = "final"
MARKERS = ("o", "^", "s", "D", "v")


class Panel(NamedTuple):
    """One run at one step. labels: (N,); plane: (N, 2), the t-SNE; original, flat: the scores of the features and of the plane."""

    run: str
    step: int | str
    labels: np.ndarray
    plane: np.ndarray
    original: dict[str, float]
    flat: dict[str, float]

    @property
    def title(self) -> str:
        when = self.step if self.step == FINAL else f"step {self.step}"
        silhouette = f"{self.original['silhouette']:.3f}".replace("-", "−")
        return f"{self.run}, {when}\nsilhouette {silhouette}"


def write_figures(panels: list[Panel], record: dict, output: Path) -> None:
    """Draw tsne_step_<n>, one panel per run; for several steps also tsne_evolution, one row per run and one column per step.

    panels: grouped by run, each with the same steps. record: the content of scores.json, for the names and the caption.
    """
    steps = list(dict.fromkeys(panel.step for panel in panels))
    for step in steps:
        _draw([[panel for panel in panels if panel.step == step]], record, output / f"tsne_step_{step}")
    if len(steps) > 1:
        rows = [panels[start : start + len(steps)] for start in range(0, len(panels), len(steps))]
        _draw(rows, record, output / "tsne_evolution")


def _caption(record: dict) -> str:
    pooling = f" ({record['pooling']})" if record["pooling"] else ""
    return (
        f"t-SNE of the last hidden layer{pooling}, {record['examples']} examples, perplexity {record['perplexity']:g}, "
        f"seed {record['seed']}.\nThe axes have no unit. Silhouette: in the original space, 1 apart, 0 mixed."
    )


def _draw(rows: list[list[Panel]], record: dict, stem: Path) -> None:
    """Draw the grid of panels as stem.pdf and stem.png."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    classes = record["classes"]
    side = 5.0 if len(rows) == len(rows[0]) == 1 else 3.2  # inches
    with style():
        colours = rcParams["axes.prop_cycle"].by_key()["color"]
        styles = list(zip(classes, cycle(colours), cycle(MARKERS), strict=False))
        size = (max(side * len(rows[0]), 5.0), (side + 0.35) * len(rows) + 0.8)
        figure = Figure(figsize=size)
        axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for axis, panel in zip(axes.flat, (panel for row in rows for panel in row), strict=True):
            axis.set_title(panel.title, parse_math=False)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(True)
            axis.set_aspect("equal", adjustable="datalim")
            _scatter(axis, panel, styles)
        handles = [
            Line2D([], [], linestyle="", marker=marker, color=colour, markersize=7, label=name)
            for name, colour, marker in styles
        ]
        figure.supxlabel(_caption(record))
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(classes), 4))
        save(figure, stem)


def _scatter(axis, panel: Panel, styles: list[tuple[str, str, str]]) -> None:
    """Draw the points in five rounds, so that no class covers all the others."""
    size = float(np.clip(6000 / len(panel.labels), 4, 30))  # in square points
    for start in range(5):
        for number, (_, colour, marker) in enumerate(styles):
            points = panel.plane[panel.labels == number][start::5]
            axis.scatter(
                *points.T,
                s=size,
                color=colour,
                marker=marker,
                alpha=0.7,
                linewidths=0,
                rasterized=len(panel.labels) > 2000,
            )
