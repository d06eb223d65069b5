"""The noise that a teacher on a share of the sequences, or a sketch of it, adds to the gradient of consistency, along a training.

Trains with the teacher run beside it. After each of --steps it takes the first samples of --test (in the form of the training data) as
one optimiser step of micro-batches of --micro_batch_size, and prints the standard deviation of the estimates of the consistency's
gradient for the adapter, relative to the norm of that gradient. All other options are those of train.py.
"""

import argparse

from ..errors import Parser, UserError, run_cli
from ..training.command_line import parse

SHARES, ENTRIES = (0.5, 0.25), (96, 32)  # tokens that a sketch keeps of a row


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m ba_lora.benchmark.teacher_noise", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--steps", type=int, nargs="+", default=[1, 20, 100], help="steps after which it measures (default: 1 20 100)")
    add("--test", required=True, metavar="FILE", help="rows to measure on")
    add("--samples", type=int, default=16, help="how many of them (default: %(default)s)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(words: list[str] | None = None) -> None:
    options, words = make_parser().parse_known_args(words)
    arguments = parse(words)
    size = arguments.micro_batch_size
    if size < 2 or options.samples % size or any(share * size % 1 for share in SHARES):
        raise UserError(
            f"--samples {options.samples} must be a multiple of --micro_batch_size {size}, and this one a multiple of 4: "
            "the variance is known where the shares give whole numbers of sequences"
        )
    from .teacher_gradients import measure  # imports torch, which takes seconds

    measure(arguments, options.test, options.samples, options.steps, SHARES, ENTRIES)


if __name__ == "__main__":
    run_cli(main)
