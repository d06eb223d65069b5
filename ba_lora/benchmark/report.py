"""The benchmark's tables and figure."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from statistics import median

from .cases import BASE, CONTESTANTS, Case
from .measure import Measured

CAN_DRAW = importlib.util.find_spec("matplotlib") is not None


def extra(results: dict[str, dict], name: str) -> int | None:
    """Bytes that the regularizers of `name` add to the peak of the same run with all weights 0; None if not measured."""
    bare = CONTESTANTS[name].bare
    return None if name == bare else _of_both(results, name, bare, lambda own, other: own - other)


def memory_ratio(results: dict[str, dict], name: str) -> float | None:
    """Peak of `name` as a ratio to plain PiSSA; None if not measured."""
    return _of_both(results, name, BASE, lambda own, other: own / other)


def _of_both(results: dict[str, dict], name: str, other: str, combine: Callable) -> float | None:
    peaks = [results[each]["peak"] if each in results else None for each in (name, other)]
    return None if None in peaks else combine(*peaks)


def describe(case: Case) -> str:
    """One line: the sizes, and the settings that the figures depend on."""
    model = case.model or f"random Llama, d = {case.hidden}, {case.layers} layers"
    if case.body:
        layers = "" if case.layers is None else f", {case.layers} layers"
        model = f"random weights of the sizes of {case.body}{layers}, {case.start} start"
    return (
        f"{model}, V = {case.vocabulary:,}, rank {case.rank}; {case.batch} × {case.length} tokens, {case.rows} of them "
        f"trained; {case.preset}; {case.dtype}, {case.device}, {case.threads} threads"
    )


def table(case: Case, results: dict[str, dict], repeats: int, start_seconds: float | None = None) -> str:
    """The results of one case as a text table. start_seconds: of the start of a body's factors."""
    lines = [
        describe(case),
        f"ratios are to {CONTESTANTS[BASE].what}; medians of {repeats} rounds; one GB is 10⁹ bytes",
        f"{'':12} {'':38} {'step s':>8} {'ratio':>7} {'peak GB':>8} {'ratio':>7} {'extra GB':>9} {'loss':>10}",
    ]
    for name, result in results.items():
        peak, ratio, more = result["peak"], memory_ratio(results, name), extra(results, name)
        seconds = median(result["seconds"]) if result["seconds"] else None
        lines.append(
            f"{name:12} {CONTESTANTS[name].what:38} {_cell(seconds, 8, 3)} {_cell(result['ratio'], 7, 2)} "
            f"{_gigabytes(peak, 8, 2)} {_cell(ratio, 7, 2)} {_gigabytes(more, 9, 3)} {_cell(result['loss'], 10, 5)}"
        )
    if start_seconds is not None:
        lines.append(f"the start of the factors ({case.start}) took {start_seconds:.1f} s")
    return "\n".join(lines)


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'–':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def _gigabytes(value: float | None, width: int, digits: int) -> str:
    return _cell(None if value is None else value / 1e9, width, digits)


def growth_table(grown: dict[str, dict]) -> str:
    """The growth of our cost, {label: results}: what it adds to the floor, in seconds and memory."""
    lines = [
        "growth, one size at a time; added: ours minus the same run with all weights 0",
        f"{'':14} {'pissa s':>8} {'floor s':>8} {'ours':>7} {'cached':>7} {'added s':>8} {'added GB':>9}",
    ]
    for label, results in grown.items():
        seconds = {name: median(results[name]["seconds"]) for name in (BASE, "floor", "ours")}
        lines.append(
            f"{label:14} {seconds[BASE]:8.3f} {seconds['floor']:8.3f} {results['ours']['ratio']:7.2f} "
            f"{results['cached']['ratio']:7.2f} {seconds['ours'] - seconds['floor']:8.3f} "
            f"{_gigabytes(extra(results, 'ours'), 9, 3)}"
        )
    return "\n".join(lines)


def draw(measured: list[Measured], path: Path) -> None:
    """Draw bars of the ratios to plain PiSSA: time, and memory if it was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    names = list(measured[0][1])
    for index, (case, results, _) in enumerate(measured):
        height = 0.8 / len(measured)
        places = [row + (index - (len(measured) - 1) / 2) * height for row in range(len(names))]
        label = case.body or f"V = {case.vocabulary:,}"
        axes[0].barh(places, [results[name]["ratio"] or 0.0 for name in names], height, label=label)
        axes[1].barh(places, [memory_ratio(results, name) or 0.0 for name in names], height, label=label)
    axes[0].set_yticks(range(len(names)), [CONTESTANTS[name].what for name in names])
    axes[0].invert_yaxis()
    for axis, title in zip(axes, ("step time", "peak memory"), strict=True):
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlabel(f"{title}, ratio to plain PiSSA")
        axis.grid(axis="x", alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(describe(measured[0][0]), fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
