"""The tables of docs/gpu.md from the files of scripts/gpu_check.sh: python -m ba_lora.benchmark.device_table [--write docs/gpu.md]."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

from ..errors import Parser, UserError, run_cli
from ..files import PROJECT, atomic_write, read_json

RESULTS = PROJECT / "results" / "gpu"
FIRST, LAST = "<!-- gpu check -->\n", "<!-- /gpu check -->\n"  # around the tables in a page
NOT_RUN = "not run here"


def table(columns: str, rows: list[list]) -> str:
    """A Markdown table. columns: names separated by " | "; a cell may be text, a number, or None."""
    names = columns.split(" | ")
    lines = [f"| {columns} |", "|" + " --- |" + " ---: |" * (len(names) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


def _cell(value) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _gigabytes(size: int | None) -> float | None:
    return None if size is None else size / 1e9


def exactness(rows: list[dict]) -> str:
    found: dict[str, dict] = {}
    for row in rows:
        found.setdefault(row["what"], {})[row["dtype"]] = row
    cells = [
        [what, *(f"{each[dtype]['value']:.1e} (≤ {each[dtype]['limit']:g})" for dtype in ("float32", "bfloat16"))]
        for what, each in found.items()
    ]
    return table("relative difference | float32 (limit) | bfloat16 (limit)", cells)


def objective(rows: list[dict]) -> str:
    cells = [
        [row["way"], row["vocabulary"], row["mib"], _milliseconds(row["seconds"]), _gigabytes(row["peak"])]
        for row in rows
    ]
    return table("objective alone | V | chunk, MiB | ms | peak, GB", cells)


def steps(case: dict) -> str:
    base, rows = case["results"]["pissa"], []
    for name, result in case["results"].items():
        step = _milliseconds(median(result["seconds"])) if result["seconds"] else None
        memory = result["peak"] / base["peak"] if result["peak"] and base["peak"] else None
        rows.append([name, step, result["ratio"], _gigabytes(result["peak"]), memory])
    sizes = case["sizes"]
    said = f"{sizes['body']}, {sizes['batch']} × {sizes['length']} tokens, rank {sizes['rank']}, {sizes['dtype']}, random weights."
    if case.get("planned"):
        said += f" `--dry_run` predicts {_gigabytes(case['planned']):.3g} GB for ours with every position trained."
    return f"{said}\n\n{table('contestant | ms | to PiSSA | peak, GB | to PiSSA', rows)}"


def start(rows: list[dict]) -> str:
    return table("decomposition | start | seconds", [[row["what"], row["start"], row["seconds"]] for row in rows])


def facts(found: dict) -> str:
    """The numbers of one run of train.py."""
    flat = {name.replace("_", " "): value for name, value in found.items() if not isinstance(value, dict)}
    flat["peak, GB"] = _gigabytes(flat.pop("peak", None))
    flat["loss"] = " → ".join(f"{value:.3f}" for value in flat["loss"])
    return table("train.py | value", [[name, value] for name, value in flat.items()])


PARTS: dict[str, tuple[str, Callable]] = {
    "exactness": ("Exactness", exactness),
    "objective": ("The objective alone", objective),
    "steps-llama-2-7b": ("A step of LLaMA-2-7B", steps),
    "steps-llama-3-8b": ("A step of LLaMA-3-8B", steps),
    "start": ("The start of the factors", start),
    "train-tiny": ("`train.py` on the embedded model", facts),
    "train-llama-2-7b": ("`train.py` at the sizes of LLaMA-2-7B", facts),
}


def section(name: str, folder: Path) -> str:
    """Heading, what ran, and table of one part; NOT_RUN where `folder` has no file of it."""
    title, write = PARTS[name]
    file = folder / f"{name}.json"
    if not file.is_file():
        return f"### {title}\n\n{NOT_RUN}\n"
    found = read_json(file, "card", "versions")
    versions = found["versions"]
    ran = f"{found['card']}{' (tiny sizes, to try the check)' if found['smoke'] else ''}, driver {found['driver'] or '–'}, torch {versions['torch']}, transformers {versions['transformers']}"
    said = f"failed: {found['failure']}" if "failure" in found else ""
    body = "\n\n".join(filter(None, (said, write(found["result"]) if "result" in found else "")))
    return f"### {title}\n\n{ran}\n\n{body}\n"


def sections(folder: Path) -> str:
    return "\n".join(section(name, folder) for name in PARTS)


def written(page: str, text: str, name: str) -> str:
    """`page` with `text` between FIRST and LAST. Raises UserError if the page `name` lacks these lines."""
    before, first, rest = page.partition(FIRST)
    _, last, after = rest.partition(LAST)
    if not first or not last:
        raise UserError(f"{name} has no lines {FIRST.strip()} and {LAST.strip()}; put them where the tables belong")
    return f"{before}{first}\n{text}\n{last}{after}"


def main(words: list[str] | None = None) -> None:
    parser = Parser(prog="python -m ba_lora.benchmark.device_table", description=__doc__.partition(":")[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=RESULTS, help="folder of the files (default: results/gpu)"
    )
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="page whose tables are replaced (default: print them)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(words)
    text = sections(args.folder)
    if args.write is None:
        return print(text)
    if not args.write.is_file():
        raise UserError(f"--write {args.write} does not exist; name a page such as docs/gpu.md")
    page = written(args.write.read_text(encoding="utf-8"), text, str(args.write))
    with atomic_write(args.write) as file:
        file.write(page)


if __name__ == "__main__":
    run_cli(main)
