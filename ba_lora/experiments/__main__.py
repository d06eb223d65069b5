"""python -m ba_lora.experiments run|tune|table|figure|report|collect FILE, or one CONFIG."""

import argparse
import os
import sys
from dataclasses import fields

from ..errors import Parser, UserError, nearest, run_cli
from ..files import of_the_project
from ..folders.ownership import claimed, refuse_foreign

DEFAULT = "configs/experiments/nlg-main-embedded.yaml"

EXAMPLES = """\
examples:
  the main job: five models, five seeds, learning rates chosen on validation problems; then the table
    python -m ba_lora.experiments run
  the same with one seed, in about three minutes
    python -m ba_lora.experiments run --seeds 1
  list the runs of a file; estimate their cost on GPUs
    python -m ba_lora.experiments run configs/experiments/nlg-main.yaml --list
    python -m ba_lora.experiments run configs/experiments/nlg-main.yaml --dry_run
  choose the learning rate of each method again
    python -m ba_lora.experiments tune
  the table from the results so far, beside the paper's numbers; as Markdown, CSV or LaTeX
    python -m ba_lora.experiments table configs/experiments/nlg-main.yaml --format latex
  its figures; or the weights and terms of one run by step
    python -m ba_lora.experiments figure configs/experiments/ranks-embedded.yaml
    python -m ba_lora.experiments figure runs/nlg-embedded/ba-lora-s42
  one page with everything in results/, to open in a browser
    python -m ba_lora.experiments report
  save the measurements in results/, one line per run
    python -m ba_lora.experiments collect
  train and evaluate one run, with options of train.py
    python -m ba_lora.experiments one configs/nlg/tiny.yaml --output_dir runs/mine --method pissa
"""

FIGURE = "draw an experiment's figures, or the terms and weights of one run by step"
REPORT = "write one HTML page with the tables, figures and provenance of several experiments"
ONE = "train one config and evaluate it"
COMMANDS = {
    "run": "train and measure the runs that are not done, then print the table",
    "tune": "choose learning rates on validation problems, with the same grid for every method",
    "table": "print the table of the results so far beside the paper's numbers",
    "collect": "write the measurements into the results folder, one line per run",
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the commands and their options."""
    parser = Parser(
        prog="python -m ba_lora.experiments",
        description="Run an experiment file, or one training with its evaluations, and show the results.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("file", nargs="?", default=DEFAULT, help=f"experiment file [{DEFAULT}]")
        _add_places(command)
        if name != "tune":
            command.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods of the file")
            command.add_argument("--seeds", type=int, help="use the first N seeds of the file")
            command.add_argument("--untuned", action="store_true", help="keep the config's learning rates (no tuning)")
        command.add_argument(
            "--set",
            nargs="+",
            default=[],
            metavar="NAME=VALUE",
            help="options of train.py for every run, such as data=FOLDER for a local copy",
        )
        if name == "table":
            _add_table_options(command)
        if name in ("run", "tune"):
            command.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel workers [one per core]")
            command.add_argument("--overwrite", action="store_true", help="repeat finished runs")
            command.add_argument("--retry", action="store_true", help="try failed runs again")
        if name == "run":
            command.add_argument(
                "--missing", action="store_true", help="only runs that the results folder does not hold"
            )
            command.add_argument("--list", action="store_true", help="only print the runs and their state")
            command.add_argument("--dry_run", action="store_true", help="only print what the runs would cost")
    figure = commands.add_parser("figure", help=FIGURE, description=FIGURE)
    figure.add_argument("target", help="experiment file, run folder, or metrics.jsonl")
    figure.add_argument(
        *("--output_dir", "--output"),
        dest="output",
        help="folder for the figures [runs/NAME, or the run's folder]; of one run also the file, as --output loss.pdf",
    )
    _add_places(figure)
    report = commands.add_parser("report", help=REPORT, description=REPORT)
    report.add_argument("files", nargs="*", help="experiment files [those with a folder in the results folder]")
    report.add_argument("--output", help="page to write [runs/report.html]")
    _add_places(report)
    one = commands.add_parser("one", help=ONE, description=ONE)
    one.add_argument("config", help="a config file of train.py; options of train.py may follow")
    return parser


def _add_table_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown", help="what to print")
    command.add_argument(
        *("--output_dir", "--output"),
        dest="output",
        help="folder for the table in all three formats [runs/NAME]",
    )
    command.add_argument("--quiet", action="store_true", help="print only the names of the files")
    command.add_argument(
        "--average_with_mt_bench",
        action="store_true",
        help="average the percentages with MT-Bench's 1 to 10, as the paper does",
    )


def _add_places(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runs", default="runs", help="folder of the runs [runs]")
    command.add_argument("--results", default=of_the_project("results"), help="folder of the results [results]")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _changes(words: list[str]) -> dict[str, str]:
    """Return {option: value} from NAME=VALUE words."""
    from ..training.arguments import TrainArguments

    pairs = dict(word.partition("=")[::2] for word in words)
    known = [item.name for item in fields(TrainArguments)]
    for name, value in pairs.items():
        if name not in known or not value:
            raise UserError(f"--set {name}={value}: write OPTION=VALUE{nearest(name, known)}, as data=FOLDER")
    return pairs


def main() -> int:
    """Return 0 if everything succeeded, 1 if a run failed."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args()
    if arguments.command == "one":
        from .single import train_and_evaluate

        return train_and_evaluate(arguments.config, rest)
    if rest:
        parser.refuse(rest)
    if arguments.command == "figure":
        return _draw(arguments)
    if arguments.command == "report":
        return _report(arguments)
    for name in ("seeds", "jobs"):
        if (getattr(arguments, name, None) or 1) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.command == "tune":
        from .tuning import tune

        changes = _changes(arguments.set)
        tune(arguments.file, arguments.runs, arguments.jobs, arguments.overwrite, arguments.retry, changes)
        return 0
    return _on_experiment(arguments)


def _draw(arguments: argparse.Namespace) -> int:
    if not arguments.target.endswith((".yaml", ".yml")):
        return _draw_run(arguments)
    from .matrix import read_experiment
    from .results import read_results

    experiment = read_experiment(arguments.target, arguments.runs, results=arguments.results)
    folder = arguments.output or experiment.home.parent / experiment.name
    results = read_results(experiment, arguments.results)
    with claimed(folder, *_place(arguments), alone=False):
        files = _figures_of(experiment)(experiment, results, folder)
    if results and not files:
        print(f"{arguments.target}: no two results can be compared yet, so nothing is drawn")
        return 0
    if not files:
        raise UserError(f"{arguments.target} has no result and names no published numbers, so there is nothing to draw")
    print("Saved as " + ", ".join(str(file) for file in files))
    return 0


def _figures_of(experiment):
    """Return the function that draws the figures of an experiment."""
    from . import laboratory
    from .figures.experiment import draw

    return laboratory.draw if laboratory.is_laboratory(experiment) else draw


def _draw_run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from .figures.run import TERMS_PNG, draw_terms

    output = Path(arguments.output) if arguments.output else None
    if output is None or (output.suffix and not output.is_dir()):
        path = draw_terms(arguments.target, output)
    else:
        with claimed(output, *_place(arguments), alone=False):
            path = draw_terms(arguments.target, output / TERMS_PNG)
    print(f"Saved as {path}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    import tempfile
    from pathlib import Path

    from .matrix import FOLDER, read_experiment
    from .report import write_report
    from .results import read_results

    output = Path(arguments.output or Path(arguments.runs) / "report.html")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file")
    named = [FOLDER / f"{folder.name}.yaml" for folder in sorted(Path(arguments.results).glob("*")) if folder.is_dir()]
    files = arguments.files or [file for file in named if file.is_file()]  # results/t-sne is not an experiment
    if not files:
        raise UserError(f"{arguments.results} holds no results; run an experiment and collect them, or name files")
    found = []
    with tempfile.TemporaryDirectory() as figures:
        for number, file in enumerate(files, 1):
            print(f"{number} of {len(files)}: {Path(file).stem}", file=sys.stderr, flush=True)
            experiment = read_experiment(file, arguments.runs, results=arguments.results)
            found.append((experiment, read_results(experiment, arguments.results)))
            _figures_of(experiment)(
                *found[-1], Path(figures) / experiment.name, ["png"]
            )  # the page shows no other format
        path = write_report(found, output, Path(figures))
    print(f"Saved as {path}: {len(found)} experiments")
    return 0


def _on_experiment(arguments: argparse.Namespace) -> int:
    from .matrix import read_experiment

    def read():
        return read_experiment(
            arguments.file,
            arguments.runs,
            arguments.seeds,
            _changes(arguments.set),
            results=arguments.results,
            tuned=not arguments.untuned,
            methods=arguments.methods,
        )

    experiment = read()
    if arguments.command == "collect":
        from .results import collect

        files = collect(experiment, arguments.results)
        print(f"{len(files)} files of {len(experiment.runs)} runs → {arguments.results}/{experiment.name}")
        return 0
    if arguments.command == "run" and arguments.list:
        return _list(_to_do(experiment, arguments))
    if arguments.command == "run" and arguments.dry_run:
        from .price import check, price, render

        check(experiment)
        print(render(price(_to_do(experiment, arguments))))
        return 0
    failed = []
    if arguments.command == "run":
        from .pool import run_all

        for folder in (experiment.home, experiment.home.parent / experiment.name):
            refuse_foreign(folder, "experiment", "--runs")
        experiment = _with_rates(experiment, arguments, read)
        with claimed(experiment.home, "experiment", "--runs"):
            failed = run_all(_to_do(experiment, arguments), arguments.jobs, arguments.overwrite, arguments.retry)
    _show(experiment, arguments)
    if failed:
        raise UserError(f"{len(failed)} of {len(experiment.runs)} runs failed: {', '.join(run.name for run in failed)}")
    return 0


def _to_do(experiment, arguments: argparse.Namespace):
    """Return the experiment, with --missing without the runs that the results folder holds."""
    if not arguments.missing:
        return experiment
    from .results import missing

    left = missing(experiment, arguments.results)
    held = len(experiment.runs) - len(left.runs)
    print(f"{held} of {len(experiment.runs)} runs are in {arguments.results}/{experiment.name} and are not repeated")
    return left


def _show(experiment, arguments: argparse.Namespace) -> None:
    """Print the table and save it in all formats."""
    from pathlib import Path

    from .examples import examples
    from .own_tables import own_tables
    from .results import read_results
    from .tables.build import build
    from .tables.formats import render, write_tables

    averaged = getattr(arguments, "average_with_mt_bench", False)
    # `run` shows only the runs of this machine, unless --missing left out what the results folder holds
    others = arguments.results if arguments.command == "table" or getattr(arguments, "missing", False) else None
    found = read_results(experiment, others)
    if arguments.methods:
        found = [result for result in found if result.variant.method in arguments.methods]
    if arguments.seeds:
        found = [result for result in found if result.seed in (None, *experiment.seeds)]
    own = own_tables(experiment)
    made = found if own else build(experiment, found, averaged)
    folder = Path(getattr(arguments, "output", None) or experiment.home.parent / experiment.name)
    with claimed(folder, *_place(arguments), alone=False):
        files = own.write_tables(experiment, made, folder) if own else write_tables(made, folder)
    kind = getattr(arguments, "format", "markdown")
    if own and kind == "latex":
        raise UserError(f"--format latex: the table of {experiment.file} is made as markdown or csv")
    if not getattr(arguments, "quiet", False):
        print(f"\n{own.tables(experiment, made)[kind] if own else render(made, kind)}")
    if arguments.command == "run" and (text := examples(experiment)):
        print(text + "\n")
    print(f"Saved as {', '.join(str(file) for file in files)}")


def _place(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return (kind of the folder for tables and figures, the option that names it), as `claimed` takes them."""
    return ("tables", "--output_dir") if getattr(arguments, "output", None) else ("experiment", "--runs")


def _with_rates(experiment, arguments: argparse.Namespace, read):
    """Return the experiment with its learning rates, running the tuning first if it has not been done."""
    from .tuning import tune

    if arguments.untuned or experiment.is_tuned:
        return experiment
    if not experiment.tuning:
        raise UserError(
            f"{experiment.file} takes the learning rates of {experiment.rates_of}, which is not tuned yet; first run: "
            f"python -m ba_lora.experiments tune configs/experiments/{experiment.rates_of}.yaml (or add --untuned)"
        )
    tune(arguments.file, arguments.runs, arguments.jobs, retry=arguments.retry, changes=_changes(arguments.set))
    return read()


def _list(experiment) -> int:
    """Print the state and the plain command of every run."""
    for run in experiment.runs:
        words = f"one {' '.join(run.words)}" if run.arguments else f"(measures {run.model} as it is)"
        print(f"{run.state(experiment.evaluations):9} {run.name}: {words}")
    print(f"{len(experiment.runs)} runs, in {experiment.home}")
    return 0


if __name__ == "__main__":
    run_cli(main)
