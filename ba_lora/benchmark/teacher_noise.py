"""The noise that a teacher on a share of the sequences, or a sketch of it, adds to the gradient of consistency, along a training.

Trains with the teacher run beside it. After each of --steps it takes the first samples of --test (in the form of the training data) as
one optimiser step of micro-batches of --micro_batch_size, and prints the standard deviation of the estimates of the consistency's
gradient for the adapter, relative to the norm of that gradient. All other options are those of train.py.
"""

from ..errors import Parser, UserError, run_cli
from .along import read

SHARES, ENTRIES = (0.5, 0.25), (96, 32)  # tokens that a sketch keeps of a row


def main(words: list[str] | None = None) -> None:
    parser = Parser(prog="python -m ba_lora.benchmark.teacher_noise", description=__doc__, allow_abbrev=False)
    options, arguments = read(parser, words, samples=16)
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
