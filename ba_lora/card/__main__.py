"""python -m ba_lora.card RUN"""

from ..errors import Parser, run_cli
from . import write_card


def main() -> None:
    parser = Parser(prog="python -m ba_lora.card", description="Write the model card of a run again.")
    parser.add_argument("run", metavar="RUN", help="the --output_dir of a training run")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    print(write_card(parser.parse_args().run))


if __name__ == "__main__":
    run_cli(main)
