"""The error that a sketch of the teacher leaves in the gradient of consistency, by estimator, along a training.

Trains with the teacher run beside it. After each of --steps it takes the trained rows of the first samples of --test (in the form of
the training data), draws their sketches of --teacher_cache_entries tokens, and compares the gradient for the last hidden states with the
exact one. All other options are those of train.py.
"""

import argparse

from ..errors import Parser, run_cli
from ..training.command_line import parse


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m ba_lora.benchmark.sketch_error", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--steps", type=int, nargs="+", default=[1, 20, 100], help="steps after which it measures (default: 1 20 100)")
    add("--test", required=True, metavar="FILE", help="rows to measure on")
    add("--samples", type=int, default=2, help="how many of them (default: %(default)s)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(words: list[str] | None = None) -> None:
    options, words = make_parser().parse_known_args(words)
    arguments = parse(words)
    from .sketch_estimators import measure  # imports torch, which takes seconds

    measure(arguments, options.test, options.samples, options.steps)


if __name__ == "__main__":
    run_cli(main)
