"""Shared drawing code for all figures: one style, sections of panels with a heading and a caption, and byte-stable files.

Bars are horizontal, with the name at the foot and the number at the head, so that no bar depends on a colour; a bar axis that
does not start at 0 is marked as cut. Each line has its own marker and stroke besides its colour. Published numbers are hollow,
in a separate section.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import choose
from .files import atomic_write
from .folders.kinds import MADE_BY

STYLE = Path(__file__).with_name("style.mplstyle")
WIDTH = 7.0  # inches
CAPTION, HEADING = 120, 90  # characters per line
LEGEND_SIZE, LEGEND_LINE = 8, 3  # points, as in the style; length of a line in letter heights
LEGEND_MARK = LEGEND_LINE + 2.8  # the line of an entry with the gaps about it
LEGEND_LETTER = 0.6  # mean width of a letter, in letter heights
# The files hold no dates or versions: the same results give the same bytes. A folder of figures is recognised by its PNG files.
FORMATS = {"pdf": {"CreationDate": None}, "png": {"Software": MADE_BY}}
MAIN = ("lora", "pissa", "ba-lora", "full")  # look the same in every figure
BEFORE = "before"  # the untouched model
ELSEWHERE = "Not measured here; models, tasks and protocols differ."  # for published numbers


class Estimate(NamedTuple):
    """A mean, its error (None if not known), the values behind it, and how it is written."""

    mean: float
    error: float | None = None
    values: tuple[float, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Bars:
    """label: the axis label with its unit. rows: (name, estimate); None instead of an estimate makes the name a heading."""

    label: str
    rows: Sequence[tuple[str, Estimate | None]]


@dataclass(frozen=True)
class Lines:
    """lines: name → its points, by x. levels: values without an x, drawn across. ticks: x positions and their names."""

    x_label: str
    y_label: str
    lines: dict[str, Sequence[tuple[float, Estimate]]]
    levels: dict[str, Estimate] = field(default_factory=dict)
    title: str = ""
    x_scale: dict = field(default_factory=lambda: {"value": "linear"})  # arguments of set_xscale
    ticks: dict[float, str] = field(default_factory=dict)
    log_y: bool = False
    band: bool = False  # draw the error as a band instead of bars


@dataclass(frozen=True)
class Section:
    """Panels of one kind. names: legend entry of each line; published: hollow."""

    heading: str
    caption: str
    panels: Sequence[Bars | Lines]
    names: dict[str, str] = field(default_factory=dict)
    published: bool = False

    @property
    def columns(self) -> int:
        return min(len(self.panels), 3 if isinstance(self.panels[0], Bars) else 2)

    @property
    def rows(self) -> int:
        return math.ceil(len(self.panels) / self.columns)

    @property
    def height(self) -> float:
        """Height in inches."""
        text = 0.5 + 0.16 * len(textwrap.wrap(self.caption, CAPTION))
        if isinstance(self.panels[0], Bars):
            return text + self.rows * (0.45 + 0.19 * max(len(panel.rows) for panel in self.panels))
        return text + 0.2 * math.ceil(len(self.names) / self.legend_columns) + 2.2 * self.rows

    @property
    def legend_columns(self) -> int:
        """As many columns, up to five, as fit into the width by the longest name of each; matplotlib fills them one by one."""
        names, width = list(self.names.values()), WIDTH * 72 / LEGEND_SIZE  # in letter heights
        for columns in range(5, 1, -1):
            lengths = [max(map(len, column)) for column in np.array_split(names, columns) if len(column)]
            if sum(LEGEND_MARK + LEGEND_LETTER * length for length in lengths) <= width:
                return columns
        return 1


def style() -> AbstractContextManager:
    """The project's style over matplotlib's defaults, regardless of the user's own matplotlibrc."""
    import matplotlib.style

    return matplotlib.style.context(STYLE, after_reset=True)


def save(figure, stem: Path, formats: Iterable[str] = FORMATS) -> list[Path]:
    """Write a matplotlib figure as stem.pdf and stem.png, or in the given formats; return the paths."""
    return [write(figure, stem.with_name(f"{stem.name}.{ending}")) for ending in formats]


def write(figure, file: Path) -> Path:
    """Write a matplotlib figure in the format of its suffix; return the file. Raises UserError for an unknown suffix."""
    ending = choose("format of a figure", file.suffix[1:], FORMATS)
    with atomic_write(file) as opened:
        figure.savefig(opened.buffer, format=ending, metadata=FORMATS[ending])
    return file


def make_figure(sections: Sequence[Section]):
    """The matplotlib figure of the sections, from top to bottom; call it within `style()`."""
    from matplotlib.figure import Figure

    heights = [section.height for section in sections]
    figure = Figure(figsize=(WIDTH, sum(heights)))
    parts = figure.subfigures(len(sections), 1, height_ratios=heights, squeeze=False)
    for part, section in zip(parts.flat, sections, strict=True):
        _draw_section(part, section)
    return figure


def looks(names: Sequence[str]) -> dict[str, dict]:
    """name → colour, marker and stroke of its line; MAIN and BEFORE always look the same."""
    from matplotlib import rcParams

    order = [*MAIN, *(name for name in names if name not in (*MAIN, BEFORE))]
    plain = {"color": "0.5", "marker": "", "linestyle": "-"}
    return dict(zip(order, cycle(rcParams["axes.prop_cycle"]), strict=False)) | {BEFORE: plain}


def _draw_section(part, section: Section) -> None:
    axes = list(part.subplots(section.rows, section.columns, squeeze=False).flat)
    for axis in axes[len(section.panels) :]:
        axis.set_axis_off()
    part.supxlabel(textwrap.fill(section.caption, CAPTION), x=0.01, ha="left")
    if isinstance(section.panels[0], Bars):
        part.suptitle(textwrap.fill(section.heading, HEADING), x=0.01, ha="left")
        _draw_bars(axes, section)
    else:
        styles = looks(list(section.names))
        if section.published:
            styles = {name: look | {"markerfacecolor": "white"} for name, look in styles.items()}
        for axis, panel in zip(axes, section.panels, strict=False):
            _draw_lines(axis, panel, styles)
        _add_legend(part, section, styles)


def _draw_bars(axes, section: Section) -> None:
    """Draw horizontal bars of equal thickness; a row of panels with the same names shows the names once."""
    most = max(len(panel.rows) for panel in section.panels)
    for number, (axis, panel) in enumerate(zip(axes, section.panels, strict=False)):
        for y, (_, estimate) in enumerate(panel.rows):
            if estimate:
                _draw_bar(axis, y, estimate, section.published)
        axis.set_ylim(most - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(panel.label)
        axis.locator_params(axis="x", nbins=7)
        _limit(axis, panel)
        names = [name for name, _ in panel.rows]
        beside = number % section.columns and names == [name for name, _ in section.panels[number - 1].rows]
        axis.set_yticks(range(len(names)), [""] * len(names) if beside else names)
        axis.tick_params(axis="y", length=0)
        for label, (_, estimate) in zip(axis.get_yticklabels(), panel.rows, strict=True):
            label.set_fontweight("normal" if estimate else "bold")


def _draw_bar(axis, y: int, estimate: Estimate, published: bool) -> None:
    fill = {"facecolor": "white", "edgecolor": "0.35", "hatch": "////"} if published else {"color": "#56B4E9"}
    axis.barh(y, estimate.mean, height=0.72, **fill)
    if estimate.error is not None:
        axis.errorbar(estimate.mean, y, xerr=estimate.error, color="black", linewidth=1, linestyle="", marker="")
    if len(estimate.values) > 1:
        axis.plot(estimate.values, [y] * len(estimate.values), "o", color="#D55E00", markersize=2.5)
    head = max(0, _range(estimate)[1])
    axis.annotate(estimate.text, (head, y), (4, 0), textcoords="offset points", va="center", fontsize=7)


def _range(estimate: Estimate) -> tuple[float, float]:
    error = estimate.error or 0
    values = (estimate.mean - error, estimate.mean + error, *estimate.values)
    return min(values), max(values)


def _limit(axis, panel: Bars) -> None:
    """Start the axis at 0, unless all values are so close that their errors would be invisible: then cut and mark it.
    Leave space for the numbers on the right."""
    ranges = [_range(estimate) for _, estimate in panel.rows if estimate]
    low, high = min(low for low, _ in ranges), max(0, *(high for _, high in ranges))
    spread = high - low
    is_cut = 0 < spread < low
    start = low - 0.6 * spread if is_cut else min(0, 1.1 * low)
    width = (high - start) or 1
    axis.set_xlim(start, start + 1.8 * width)
    first = start + 0.15 * width if is_cut else start
    ticks = [tick for tick in axis.get_xticks() if first <= tick <= start + 1.1 * width]
    axis.set_xticks(ticks[::2] if len(ticks) > 2 else ticks)
    if is_cut:
        slash = {"marker": [(-0.5, -1), (0.5, 1)], "color": "black", "markersize": 7, "linestyle": "", "clip_on": False}
        axis.plot([0.02, 0.05], [0, 0], transform=axis.transAxes, **slash)


def _draw_lines(axis, panel: Lines, styles: dict[str, dict]) -> None:
    for number, (name, points) in enumerate(panel.lines.items()):
        x, y = [x for x, _ in points], [estimate.mean for _, estimate in points]
        errors = [math.nan if estimate.error is None else estimate.error for _, estimate in points]
        if panel.band:
            every = max(1, len(x) // 8)  # overlapping lines have their markers in different places
            axis.plot(x, y, markevery=(number % every, every), **styles[name])
            low, high = ([a + sign * b for a, b in zip(y, errors, strict=True)] for sign in (-1, 1))
            axis.fill_between(x, low, high, color=styles[name]["color"], alpha=0.2, linewidth=0)
        else:
            known = any(error > 0 for error in errors)
            axis.errorbar(x, y, yerr=errors if known else None, elinewidth=0.8, **styles[name])
    for name, level in panel.levels.items():
        look = {key: styles[name][key] for key in ("color", "linestyle")}
        axis.axhline(level.mean, **look)
        if level.error is not None:
            axis.axhspan(
                level.mean - level.error, level.mean + level.error, color=look["color"], alpha=0.15, linewidth=0
            )
    axis.set_xscale(**panel.x_scale)
    if panel.ticks:
        crowded = len(panel.ticks) > 8
        axis.set_xticks(list(panel.ticks), list(panel.ticks.values()), rotation=90 if crowded else 0)
        axis.set_xticks([], minor=True)
    if panel.log_y:
        axis.set_yscale("log", nonpositive="clip")
    axis.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)


def _add_legend(part, section: Section, styles: dict[str, dict]) -> None:
    """Add the heading and, below it, the legend of the lines."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **styles[key], label=name) for key, name in section.names.items()]
    legend = part.legend(
        handles=handles,
        title=textwrap.fill(section.heading, HEADING),
        title_fontsize=10,
        loc="outside upper left",
        ncols=section.legend_columns,
        alignment="left",
        handlelength=LEGEND_LINE,
    )
    legend.get_title().set_multialignment("left")
