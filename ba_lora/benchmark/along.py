"""The options of a measurement along a training. All others are those of the training."""

import argparse

from ..training.arguments import TrainArguments
from ..training.command_line import parse


def read(
    parser: argparse.ArgumentParser, words: list[str] | None, samples: int
) -> tuple[argparse.Namespace, TrainArguments]:
    """(the options of the measurement, which are added to `parser`, the training). samples: the default of --samples."""
    add = parser.add_argument
    add("--steps", type=int, nargs="+", default=[1, 20, 100], help="steps after which it measures (default: 1 20 100)")
    add("--test", required=True, metavar="FILE", help="rows to measure on")
    add("--samples", type=int, default=samples, help="how many of them (default: %(default)s)")
    add("--debug", action="store_true", help="show the traceback of an error")
    options, words = parser.parse_known_args(words)
    return options, parse(words)
