"""The data of a run's benchmarks, and what a benchmark is called on it."""

from collections.abc import Iterable
from pathlib import Path

import eval.all
from eval import gsm8k
from eval.gsm8k import GSM8K

from ..errors import UserError
from ..training.arguments import TrainArguments


def data_of(arguments: TrainArguments, benchmarks: list[str]) -> dict[str, str]:
    """Return {benchmark: its data} from --eval_data, or for GSM8K the test split beside a local copy; others have their own."""
    if arguments.eval_data:
        if len(benchmarks) == 1 and len(arguments.eval_data) == 1 and "=" not in arguments.eval_data[0]:
            return {benchmarks[0]: arguments.eval_data[0]}
        return dict(eval.all.read_pair("--eval_data", text) for text in arguments.eval_data)
    name, _, part = (arguments.data or "").partition(":")
    if "gsm8k" not in benchmarks or not arguments.data_path or name != GSM8K.partition(":")[0]:
        return {}
    copy = Path(arguments.data_path)
    if copy.is_dir():
        return {"gsm8k": f"{copy}:{part}" if part else str(copy)}
    beside = copy.with_name(copy.name.replace("train", "test"))
    if beside == copy or not beside.is_file():
        raise UserError(f"no test file lies beside --data_path {copy}; name one with --eval_data")
    return {"gsm8k": str(beside)}


def columns_of(runs: Iterable) -> list[str]:
    """Return the columns of the benchmarks that the configs of some runs name."""
    return list(dict.fromkeys(column_of(name, run.arguments) for run in runs for name in run.benchmarks))


def column_of(name: str, arguments: TrainArguments) -> str:
    """Return the name of a benchmark's column: for GLUE the task, for generated problems their own, which is not GSM8K's."""
    if name == "glue":
        return arguments.task
    if name != "gsm8k":
        return name
    try:
        data = data_of(arguments, arguments.benchmarks).get(name)
    except UserError:  # a copy of GSM8K that another machine has
        return name
    return gsm8k.name_of(data or gsm8k.default_data(arguments.model))
