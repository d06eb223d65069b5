"""Pre-trains the embedded model from scratch, including its tokenizer, on generated problems and stories (data/tinymath.py).

    python -m ba_lora.tiny.pretrain --output_dir DIR

For problems, the loss covers the response and its end token; for stories, every token. The seed fixes the data, the order
and the weights. DIR appears only when everything is done. It holds weights, tokenizer, and recipe.json with the command, the
seconds and the accuracy: on unseen problems of the model's own task, and on the fine-tuning task that it was not taught.
"""

import argparse
import json
import math
from pathlib import Path

from ..errors import Parser, UserError, run_cli
from ..folders.ownership import refuse_foreign


def main(arguments=None):
    """Run the command. Returns the exit status."""
    parser = Parser(
        prog="python -m ba_lora.tiny.pretrain",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument(
        *("--output_dir", "--output"),
        dest="output",
        type=Path,
        required=True,
        help="folder to write; an earlier model of this command in it is replaced",
    )
    parser.add_argument("--steps", type=int, default=3200, help="optimiser steps (default %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="sequences per step (default %(default)s)")
    parser.add_argument(
        *("--learning_rate", "--lr"), type=float, default=2e-3, help="peak rate of AdamW (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of data, order and weights (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    options = parser.parse_args(arguments)
    for name in ("steps", "batch_size", "threads", "learning_rate"):
        if not 0 < getattr(options, name) < math.inf:
            raise UserError(f"--{name} is {getattr(options, name)}: it must be greater than 0 and finite")
    refuse_foreign(options.output, "pre-trained model")
    import torch  # takes seconds, which --help and refusals do without

    from .recipe import pretrain

    torch.set_num_threads(options.threads)
    recipe = pretrain(options.output, options.steps, options.batch_size, options.learning_rate, options.seed)
    print(json.dumps(recipe, indent=2))
    return 0


if __name__ == "__main__":
    run_cli(main)
