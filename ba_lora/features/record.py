"""The data behind t-SNE figures: the points in coordinates.csv, and in scores.json their description and their separation.

Both are small, unlike the features, so they can be kept and the same figures drawn again.
"""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DamagedFile, UserError
from ..files import atomic_write, check_kinds, unsealed
from ..folders import checksums
from ..folders.ownership import refuse_foreign
from .figure import Panel, write_figures

logger = logging.getLogger(__name__)

COORDINATES, SCORES = "coordinates.csv", "scores.json"
KINDS = {  # required for drawing
    **{"classes": "a list of texts", "pooling?": "a text", "examples": "a whole number", "perplexity": "a number"},
    **{"seed": "a whole number", "panels": "a list of objects"},
}
PANEL_KINDS = {"run": "a text", "step": "a text or a number", "original": "an object", "plane": "an object"}
AGAIN = "draw the features again"


def write_record(panels: list[Panel], examples: Sequence[int], record: dict, output: Path) -> None:
    """Write both files. examples: (N,), rows of the points in the features file. record: other data that `redraw` needs."""
    with atomic_write(output / COORDINATES) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", "step", "example", "label", "x", "y"))
        for panel in panels:
            for example, label, (x, y) in zip(examples, panel.labels, panel.plane, strict=True):
                writer.writerow((panel.run, panel.step, example, record["classes"][label], x, y))
    scored = [{"run": p.run, "step": p.step, "original": p.original, "plane": p.flat} for p in panels]
    checksums.write_record(output / SCORES, record | {"panels": scored}, (COORDINATES,))


def redraw(folder: str | Path, output: str | Path) -> list[Panel]:
    """Draw the figures of a folder's two files again into `output`, byte for byte the same; return the panels. Raises UserError
    like `read_record`, and for an `output` that is not empty and not ours."""
    refuse_foreign(output, "t-SNE", "the folder of the figures,")
    panels, record = read_record(Path(folder))
    write_figures(panels, record, Path(output))
    return panels


def read_record(folder: Path) -> tuple[list[Panel], dict]:
    """The panels of a folder's two files, and the content of scores.json. Raises UserError if a file is missing or
    broken, or if the two do not belong together."""
    for name in (SCORES, COORDINATES):
        if not (folder / name).is_file():
            raise UserError(f"--redraw {folder} holds no {name}; give a folder that holds t-SNE figures")
    record, panels = _read_scores(folder / SCORES), []
    points = _read_points(folder / COORDINATES, record["classes"])
    for scored in record["panels"]:
        run, step = scored["run"], scored["step"]
        labels, plane = points.get((run, str(step)), ([], []))
        if len(labels) != record["examples"]:
            raise UserError(
                f"{folder / COORDINATES} has {len(labels)} points of {run} at step {step} and {SCORES} {record['examples']} "
                f"examples; {AGAIN}"
            )
        plane = np.array(plane, np.float32)
        panels.append(Panel(run, step, np.array(labels), plane, scored["original"], scored["plane"]))
    try:
        checksums.read_record(folder / SCORES)
    except DamagedFile as error:  # points may have been moved on purpose
        logger.warning("%s; drawn as they are now", error)
    return panels, record


def _read_scores(file: Path) -> dict:
    record = unsealed(file.read_bytes(), str(file), compare=False, remedy=AGAIN)
    check_kinds(record, str(file), KINDS, AGAIN)
    for number, panel in enumerate(record["panels"], 1):
        check_kinds(panel, f"{file}, panel {number}", PANEL_KINDS, AGAIN)
    return record


def _read_points(file: Path, classes: list[str]) -> dict[tuple[str, str], tuple[list, list]]:
    """{(run, step): (labels, points (x, y))}."""
    found = {}
    with open(file, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                labels, points = found.setdefault((row["run"], row["step"]), ([], []))
                labels.append(classes.index(row["label"]))
                points.append((float(row["x"]), float(row["y"])))
        except UnicodeDecodeError:
            raise UserError(f"{file} is not UTF-8 text; {AGAIN}") from None
        except (csv.Error, KeyError, TypeError, ValueError):
            raise UserError(
                f"{file}, line {reader.line_num}: no run, step, label (of {', '.join(classes)}), x and y; {AGAIN}"
            ) from None
    return found
