"""Train one model: python train.py --config FILE [--option value ...]; --help lists every option. The same as ba-lora train."""

from ba_lora.commands.train import main
from ba_lora.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
