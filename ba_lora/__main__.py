"""ba-lora COMMAND: one name for each command of the project. `python -m` and train.py remain, and do the same."""

import importlib
import sys
from typing import NamedTuple

from . import __version__
from .errors import CALLED, UserError, choose, run_cli
from .files import CHECKOUT, PROJECT


class Command(NamedTuple):
    """A module with a `main`, and what it does. repository: the module is not part of the installed package."""

    module: str
    what: str
    repository: bool = False


COMMANDS = {
    "train": Command("ba_lora.commands.train", "fine-tune a model, or continue a run"),
    "chat": Command("ba_lora.chat.__main__", "see the answers of the base and of the tuned model"),
    "card": Command("ba_lora.card.__main__", "write the model card of a run again"),
    "push": Command("ba_lora.hub", "upload a run to the hub"),
    "plan": Command("ba_lora.commands.plan", "predict memory and hours of a training, without weights"),
    "preflight": Command("ba_lora.preflight.__main__", "find what would stop a training on this machine"),
    "benchmark": Command("ba_lora.benchmark.__main__", "measure step time and memory beside plain PiSSA"),
    "eval": Command("eval.all", "score a model on the benchmarks", repository=True),
    "experiments": Command(
        "ba_lora.experiments.__main__", "run experiment files, make tables and figures", repository=True
    ),
}


def table() -> str:
    """The commands that are here, one a line."""
    here = {name: row for name, row in COMMANDS.items() if CHECKOUT or not row.repository}
    width = max(map(len, here))
    lines = [f"  {name:{width}}  {row.what}" for name, row in here.items()]
    return "\n".join(["usage: ba-lora COMMAND [--option value ...]", "", *lines, "", "Each has --help."])


def main() -> int | None:
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(table())
        return None
    if name == "--version":
        print(f"ba-lora {__version__}")
        return None
    row = COMMANDS[choose("command", name, COMMANDS)]
    if row.repository:
        if not CHECKOUT:
            raise UserError(
                f"ba-lora {name} belongs to the repository and is not in the installed package; clone the repository and run "
                f"python -m ba_lora {name} in it"
            )
        sys.path.insert(0, str(PROJECT))  # eval/ is beside the package
    CALLED[f"python -m {row.module.removesuffix('.__main__')}"] = f"ba-lora {name}"
    CALLED["python train.py"] = "ba-lora train"
    sys.argv = [f"ba-lora {name}", *words]
    return importlib.import_module(row.module).main()


def command() -> None:
    """The console script `ba-lora`."""
    run_cli(main)


if __name__ == "__main__":
    run_cli(main)
