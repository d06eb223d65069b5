"""The error that a sketch of the teacher leaves in the gradient of consistency, by estimator, along a training.

Trains with the teacher run beside it. After each of --steps it takes the trained rows of the first samples of --test (in the form of
the training data), draws their sketches of --teacher_cache_entries tokens, and compares the gradient for the last hidden states with the
exact one. All other options are those of train.py.
"""

from ..errors import Parser, run_cli
from .along import read


def main(words: list[str] | None = None) -> None:
    parser = Parser(prog="python -m ba_lora.benchmark.sketch_error", description=__doc__, allow_abbrev=False)
    options, arguments = read(parser, words, samples=2)
    from .sketch_estimators import measure  # imports torch, which takes seconds

    measure(arguments, options.test, options.samples, options.steps)


if __name__ == "__main__":
    run_cli(main)
