"""One config: train it, on as many processes as the environment says, then run the evaluations that it names."""

import importlib
from pathlib import Path

from eval.gsm8k import GSM8K, default_data

from .. import launch
from ..arguments import TrainArguments, parse
from ..card import write_card
from ..errors import UserError, choose
from ..hub import push_after, reserve
from ..run import train

BENCHMARKS = {"gsm8k": "eval.gsm8k"}
PLANNED = ("math", "humaneval", "mbpp", "mt_bench")  # named by the published recipes, not in this version


def train_and_evaluate(config: str, words: list[str]) -> int:
    """Train `config` with the options `words`, then each of its benchmarks into RUN/eval/; returns 0.

    Without --output_dir the run goes to runs/NAME OF THE CONFIG, with the method behind it where it is not the config's.
    """
    if "--dry_run" in words:
        from ..plan import show

        show(parse(["--config", config, *words]))
        return 0
    words = ["--config", config, *words]
    if not any(word.partition("=")[0] == "--output_dir" for word in words):
        words += ["--output_dir", str(Path("runs") / _name(config, words))]
    arguments = parse(words)
    benchmarks = [choose("benchmark", name, [*BENCHMARKS, *PLANNED]) for name in arguments.benchmarks or ()]
    tests = _test_data(arguments)
    command = launch.command(arguments, [*words, "--push_to_hub", "none", "--hub_public", "false"])
    for name in set(benchmarks) & set(BENCHMARKS):  # what cannot be read is said before the training
        importlib.import_module(BENCHMARKS[name]).load_problems(
            tests or default_data(arguments.model), arguments.eval_limit
        )
    if arguments.push_to_hub:
        reserve(arguments.push_to_hub, arguments.hub_public)
    if command is None:
        train(arguments)
    else:
        launch.start(command)
    folder = Path(arguments.output_dir)
    push_after(folder, arguments, last=False)
    for name in benchmarks:
        if name in PLANNED:
            print(f"{name}: this version has no such evaluation, left out")
            continue
        options = ["--model", str(folder), "--output_dir", str(folder / "eval" / name), "--overwrite"]
        options += ["--dtype", arguments.dtype]
        options += ["--trust_remote_code"] if arguments.trust_remote_code else []
        options += ["--data", tests] if tests else []
        options += ["--limit", str(arguments.eval_limit)] if arguments.eval_limit else []
        importlib.import_module(BENCHMARKS[name]).main(options)
    write_card(folder)  # again, now with the results
    push_after(folder, arguments)
    print(f"Run folder: {folder}")
    return 0


def _name(config: str, words: list[str]) -> str:
    """The config's name, with the method behind it where the options change that."""
    own, now = (parse([*given, "--output_dir", "unnamed"]).method for given in (["--config", config], words))
    return Path(config).stem if now == own else f"{Path(config).stem}-{now}"


def _test_data(arguments: TrainArguments) -> str | None:
    """What the benchmarks read: --eval_data, else the test split beside a local copy of GSM8K; None is a benchmark's own."""
    name, _, part = arguments.data.partition(":")
    if arguments.eval_data or not arguments.data_path or name != GSM8K.partition(":")[0]:
        return arguments.eval_data
    copy = Path(arguments.data_path)
    if copy.is_dir():
        return f"{copy}:{part}" if part else str(copy)
    beside = copy.with_name(copy.name.replace("train", "test"))
    if beside == copy or not beside.is_file():
        raise UserError(f"no test file lies beside --data_path {copy}; name one with --eval_data")
    return str(beside)
