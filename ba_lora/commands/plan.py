"""The plan of a training: ba-lora plan, which is ba-lora train with --dry_run."""

import sys

from ..errors import as_called, run_cli
from . import train

USAGE = """\
usage: python -m ba_lora.commands.plan [CONFIG] [--option value ...]

Predict parameters, steps, memory and disk of a training; with --devices also its hours and the ways to place it that fit. Reads
shapes alone: no weights, no hub, no GPU. Options: those of the training, to which --dry_run is added.

examples:
  python -m ba_lora.commands.plan configs/nlg/llama-2-7b-metamath-iclr.yaml --devices 1xA40
  python -m ba_lora.commands.plan --model mistral-7b --data my.jsonl --devices 8xH100-80"""


def main() -> int | None:
    words = sys.argv[1:] or ["--help"]
    if {"-h", "--help"} & set(words):
        print(as_called(USAGE))
        return None
    if not words[0].startswith("-"):
        words = ["--config", *words]
    return train.main([*words, "--dry_run"])


if __name__ == "__main__":
    run_cli(main)
