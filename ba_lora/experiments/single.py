"""One config: train it on as many processes as the environment sets, then run the evaluations that it names."""

from pathlib import Path

import eval.all
import eval.glue
import eval.gluex
from eval.gsm8k import GSM8K

from .. import preflight, signals
from ..card import write_card
from ..errors import UserError, choose
from ..hub import push_after, reserve
from ..training import launch
from ..training.arguments import TrainArguments
from ..training.command_line import run_words
from ..training.first_checks import parse_and_check

CLASSIFICATION = ("glue", "gluex")  # the benchmarks of a run with --task


def train_and_evaluate(config: str, words: list[str]) -> int:
    """Train `config` with the options `words`, then run each of its benchmarks into RUN/eval/; return 0.

    With several machines (launch.py) only the first evaluates, and only it needs the run folder and the benchmarks' data.
    Without --output_dir the run goes to runs/NAME OF THE CONFIG, followed by the method if it differs from the config's.
    """
    if "--dry_run" in words:
        from ..planning.plan import show

        show(parse_and_check(["--config", config, *words]))
        return 0
    words = run_words(config, words)
    arguments = parse_and_check(words, check=preflight.check)
    known = CLASSIFICATION if arguments.task else eval.all.BENCHMARKS
    benchmarks = [choose("benchmark", name, known) for name in arguments.benchmarks or ()]
    tests = {} if arguments.task else _test_data(arguments, benchmarks)
    if launch.is_first_machine() and not arguments.task:
        for name in benchmarks:  # report unreadable data before the training
            eval.all.check_data(name, tests.get(name), arguments.model, arguments.eval_limit)
    command = launch.command(arguments, [*words, "--push_to_hub", "none", "--hub_public", "false"])
    if not launch.is_first_machine():
        launch.start(command, arguments.use_cpu)
        print(f"The first machine evaluates and holds the run folder: {arguments.output_dir}")
        return 0
    if arguments.push_to_hub:
        reserve(arguments.push_to_hub, arguments.hub_public)
    if command is None:
        from ..training.run import train  # the libraries, which take seconds to import

        train(arguments)
        signals.check()
    else:
        launch.start(command, arguments.use_cpu)
    folder = Path(arguments.output_dir)
    push_after(folder, arguments, last=False)
    failure = None
    if arguments.task:
        _classify(arguments, benchmarks)
    elif benchmarks:
        options = ["--overwrite", "--dtype", arguments.dtype, "--benchmarks", *benchmarks]
        options += ["--trust_remote_code"] if arguments.trust_remote_code else []
        options += ["--data", *(f"{name}={file}" for name, file in tests.items())] if tests else []
        options += ["--limit", str(arguments.eval_limit)] if arguments.eval_limit else []
        try:
            eval.all.main([str(folder), *options])
        except UserError as error:  # the card still shows the other results
            failure = error
    write_card(folder)  # again, now with the results
    push_after(folder, arguments)
    if failure:
        raise failure
    print(f"Run folder: {folder}")
    return 0


def _classify(arguments: TrainArguments, benchmarks: list[str]) -> None:
    """Run the evaluations of a classifier, with the out-of-domain sets that are available."""
    limit = ["--limit", str(arguments.eval_limit)] if arguments.eval_limit else []
    options = ["--model", arguments.output_dir, "--overwrite", "--dtype", arguments.dtype, *limit]
    if "glue" in benchmarks:
        for split in ("validation", "validation_mismatched") if arguments.task == "mnli" else ("validation",):
            eval.glue.main([*options, "--split", split])
    if "gluex" in benchmarks:
        eval.gluex.main([*options, "--at_hand", *(["--data", *arguments.eval_data] if arguments.eval_data else [])])


def _test_data(arguments: TrainArguments, benchmarks: list[str]) -> dict[str, str]:
    """Return {benchmark: its data} from --eval_data, or for GSM8K the test split beside a local copy; others have their own."""
    if arguments.eval_data:
        if len(benchmarks) == 1 and len(arguments.eval_data) == 1 and "=" not in arguments.eval_data[0]:
            return {benchmarks[0]: arguments.eval_data[0]}
        return dict(eval.all.read_pair("--eval_data", text) for text in arguments.eval_data)
    name, _, part = arguments.data.partition(":")
    if "gsm8k" not in benchmarks or not arguments.data_path or name != GSM8K.partition(":")[0]:
        return {}
    copy = Path(arguments.data_path)
    if copy.is_dir():
        return {"gsm8k": f"{copy}:{part}" if part else str(copy)}
    beside = copy.with_name(copy.name.replace("train", "test"))
    if beside == copy or not beside.is_file():
        raise UserError(f"no test file lies beside --data_path {copy}; name one with --eval_data")
    return {"gsm8k": str(beside)}
