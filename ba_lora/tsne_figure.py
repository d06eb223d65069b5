"""The panels of t-SNE figures drawn: classes by colour and shape, in the title how far apart they lie in the original space."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import atomic_write

FINAL = "final"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
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


def write_figures(
    panels: list[Panel], steps: Sequence[int | str], classes: list[str], caption: str, output: Path
) -> None:
    """tsne_step_<n> with a panel a run; with several steps tsne_evolution, a row a run and a column a step."""
    for step in steps:
        _draw([[panel for panel in panels if panel.step == step]], classes, caption, output / f"tsne_step_{step}")
    if len(steps) > 1:
        rows = [panels[start : start + len(steps)] for start in range(0, len(panels), len(steps))]
        _draw(rows, classes, caption, output / "tsne_evolution")


def _draw(rows: list[list[Panel]], classes: list[str], caption: str, stem: Path) -> None:
    """The grid of panels as stem.pdf and stem.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    side = 5.0 if len(rows) == len(rows[0]) == 1 else 3.2  # inches
    styles = list(zip(classes, cycle(COLOURS), cycle(MARKERS), strict=False))
    with plt.rc_context({"pdf.fonttype": 42, "font.size": 9, "axes.titlesize": 10}):
        size = (max(side * len(rows[0]), 5.0), (side + 0.35) * len(rows) + 0.8)
        figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=size, squeeze=False, layout="constrained")
        for axis, panel in zip(axes.flat, (panel for row in rows for panel in row), strict=True):
            axis.set_title(panel.title, parse_math=False)
            axis.set(xticks=[], yticks=[])
            axis.set_aspect("equal", adjustable="datalim")
            _scatter(axis, panel, styles)
        handles = [
            plt.Line2D([], [], linestyle="", marker=marker, color=colour, markersize=7, label=name)
            for name, colour, marker in styles
        ]
        figure.supxlabel(caption, fontsize=8)
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(classes), 4), frameon=False)
        for ending, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            with atomic_write(stem.with_name(f"{stem.name}.{ending}")) as file:
                figure.savefig(file.buffer, format=ending, dpi=200, metadata=metadata)
        plt.close(figure)


def _scatter(axis, panel: Panel, styles: list[tuple[str, str, str]]) -> None:
    """The points in five rounds, so that no class covers all the others."""
    size = float(np.clip(6000 / len(panel.labels), 4, 30))  # square points
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
