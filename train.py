"""Train one model: python train.py --config FILE [--option value ...]; --help lists every option."""

from ba_lora.errors import run_cli


def main() -> None:
    from ba_lora.arguments import parse
    from ba_lora.run import leave_processes, train

    train(parse())
    leave_processes()


if __name__ == "__main__":
    run_cli(main)
