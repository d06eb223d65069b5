"""python -m ba_lora.experiments run|table|tune FILE, figure RUN, or one CONFIG."""

import argparse
import os
from dataclasses import fields

from ..errors import UserError, nearest, run_cli

DEFAULT = "configs/experiments/embedded.yaml"

EXAMPLES = """\
examples:
  the main job: five models, three seeds, and the table
    python -m ba_lora.experiments run
  the same with one seed, in about three minutes
    python -m ba_lora.experiments run --seeds 1
  the table again, from the results that are there
    python -m ba_lora.experiments table
  choose each method's learning rate on validation problems
    python -m ba_lora.experiments tune
  the weights and terms of one run over its steps, as a figure
    python -m ba_lora.experiments figure runs/embedded/ba-lora-s42
  one run, trained and evaluated, with options of train.py
    python -m ba_lora.experiments one configs/nlg/tiny.yaml --output_dir runs/mine --method pissa
"""


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m ba_lora.experiments",
        description="Run an experiment file, or one training with its evaluations, and show the results.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("run", "train and measure what is not done yet, then print the table"),
        ("table", "print the table of what has been measured"),
        ("tune", "compare learning rates on validation problems"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("file", nargs="?", default=DEFAULT, help=f"experiment file [{DEFAULT}]")
        command.add_argument("--runs", default="runs", help="folder that holds the runs [runs]")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name != "tune":
            command.add_argument(
                "--set",
                nargs="+",
                default=[],
                metavar="NAME=VALUE",
                help="options of train.py for every run, such as data=FOLDER for a local copy",
            )
            command.add_argument("--seeds", type=int, help="use the first N seeds of the file")
        if name != "table":
            command.add_argument("--jobs", type=int, default=os.cpu_count(), help="workers at once [one per core]")
            command.add_argument("--overwrite", action="store_true", help="repeat finished runs")
    figure = commands.add_parser(
        "figure", help="draw a run's terms and weights", description="draw a run's terms and weights"
    )
    figure.add_argument("run", help="run folder, or a metrics.jsonl")
    figure.add_argument("--output", help="file to write, .png or .pdf [RUN/terms.png]")
    figure.add_argument("--debug", action="store_true", help="show the traceback of an error")
    one = commands.add_parser(
        "one", help="train one config and evaluate it", description="train one config and evaluate it"
    )
    one.add_argument("config", help="a config file of train.py; its options may follow")
    return parser


def _changes(words: list[str]) -> dict[str, str]:
    """{option: value} from NAME=VALUE words."""
    from ..arguments import TrainArguments

    pairs = dict(word.partition("=")[::2] for word in words)
    known = [item.name for item in fields(TrainArguments)]
    for name, value in pairs.items():
        if name not in known or not value:
            raise UserError(f"--set {name}={value}: write OPTION=VALUE{nearest(name, known)}, as data=FOLDER")
    return pairs


def main() -> int:
    """Returns 0 when everything asked for was done, 1 when a run failed."""
    arguments, rest = make_parser().parse_known_args()
    if arguments.command == "one":
        from .single import train_and_evaluate

        return train_and_evaluate(arguments.config, rest)
    if rest:
        raise UserError(f"unknown option {rest[0]}; see --help")
    if arguments.command == "figure":
        from .figure import draw_terms

        print(f"Saved as {draw_terms(arguments.run, arguments.output)}")
        return 0
    for name in ("seeds", "jobs"):
        if (getattr(arguments, name, None) or 1) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.command == "tune":
        from .tuning import tune

        return tune(arguments.file, arguments.runs, arguments.jobs, arguments.overwrite)
    from .matrix import read_experiment
    from .table import write_table

    experiment = read_experiment(arguments.file, arguments.runs, arguments.seeds, _changes(arguments.set))
    failed = []
    if arguments.command == "run":
        from .pool import run_all

        failed = run_all(experiment, arguments.jobs, arguments.overwrite)
    text, path = write_table(experiment)
    print(f"\n{text}\nSaved as {path}")
    if failed:
        raise UserError(f"{len(failed)} of {len(experiment.runs)} runs failed: {', '.join(run.name for run in failed)}")
    return 0


if __name__ == "__main__":
    run_cli(main)
