"""One config: train it, then run the evaluations that it names."""

import importlib
from pathlib import Path

from ..arguments import parse
from ..errors import UserError, choose
from ..run import train

BENCHMARKS = {"gsm8k": "eval.gsm8k"}


def train_and_evaluate(config: str, words: list[str]) -> int:
    """Train `config` with the options `words`, then each of its benchmarks into RUN/eval/; returns 0.

    Without --output_dir the run goes to runs/NAME OF THE CONFIG.
    """
    if not any(word.partition("=")[0] == "--output_dir" for word in words):
        words = [*words, "--output_dir", str(Path("runs") / Path(config).stem)]
    arguments = parse(["--config", config, *words])
    benchmarks = [choose("benchmark", name, BENCHMARKS) for name in arguments.benchmarks or ()]
    if (
        arguments.eval_data
        and not arguments.eval_data.startswith("tinymath:")
        and not Path(arguments.eval_data).is_file()
    ):
        raise UserError(f"--eval_data {arguments.eval_data} does not exist")
    folder = train(arguments)
    for name in benchmarks:
        options = ["--model", str(folder), "--output_dir", str(folder / "eval" / name), "--overwrite"]
        options += ["--data", arguments.eval_data] if arguments.eval_data else []
        options += ["--limit", str(arguments.eval_limit)] if arguments.eval_limit else []
        importlib.import_module(BENCHMARKS[name]).main(options)
    print(f"Run folder: {folder}")
    return 0
