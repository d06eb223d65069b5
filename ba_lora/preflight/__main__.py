"""python -m ba_lora.preflight CONFIG [options of train.py]"""

import sys

from ..errors import UserError, as_called, run_cli
from ..files import CHECKOUT
from ..machine.devices import hide_gpus
from ..training.command_line import parse, run_words
from . import check

USAGE = """\
usage: python -m ba_lora.preflight CONFIG [--option value ...]

Check in seconds whether a run can start on this machine: access to gated weights and data or their local copies, the disk,
the host's and the GPUs' memory, the sandbox for benchmarks that run programs, vLLM, the judge of MT-Bench. Everything that
is missing is printed, one line each with its remedy, and the status is 2. Nothing is written. Options: those of train.py.

example:
  python -m ba_lora.preflight configs/nlg/llama-2-7b-metamath-iclr.yaml --output_dir runs/llama"""


def main() -> None:
    """Raises UserError if something was found."""
    config, *words = sys.argv[1:] or ["--help"]
    if config in ("-h", "--help"):
        print(as_called(USAGE))
        return
    if config.startswith("-"):
        raise UserError(f"the first word is {config}; name a config before the options, as in configs/nlg/tiny.yaml")
    arguments = parse(run_words(config, words))
    if arguments.use_cpu:
        hide_gpus()
    check(arguments)
    start = "sh scripts/ba-lora.sh" if CHECKOUT else "ba-lora train --config"
    if arguments.benchmarks and not CHECKOUT:
        print(
            f"The installed package trains and has no eval/: {', '.join(arguments.benchmarks)} can be run in a checkout."
        )
    print(f"Nothing was found that would stop this run here; start it with: {start} {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    run_cli(main)
