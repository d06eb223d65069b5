"""One config: train it on as many processes as the environment sets, then run the evaluations that it names.

The training has processes of its own, and their memory is free again when the evaluation begins.
"""

import os
import sys
from pathlib import Path

import eval.all
import eval.glue
import eval.gluex

from .. import preflight, signals
from ..card import write_card
from ..errors import RunFailure, UserError, choose
from ..files import PROJECT
from ..hub import push_after, reserve
from ..inference.backends import Choice, resolve_anywhere
from ..training import launch
from ..training.arguments import TrainArguments
from ..training.command_line import run_words
from ..training.first_checks import parse_and_check
from .benchmark_data import data_of
from .closing import closing

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
    arguments = parse_and_check(words, check=preflight.check, tell=False)
    known = CLASSIFICATION if arguments.task else eval.all.BENCHMARKS
    benchmarks = [choose("benchmark", name, known) for name in arguments.benchmarks or ()]
    tests = {} if arguments.task else data_of(arguments, benchmarks)
    if launch.is_first_machine() and not arguments.task:
        for name in benchmarks:  # report unreadable data before the training
            eval.all.check_data(name, tests.get(name), arguments.model, arguments.eval_limit)
    backend = _backend(arguments, benchmarks)
    command = launch.command(arguments, [*words, "--push_to_hub", "none", "--hub_public", "false"])
    if not launch.is_first_machine():
        launch.start(command, arguments.use_cpu)
        print(f"The first machine evaluates and holds the run folder: {arguments.output_dir}")
        return 0
    if arguments.push_to_hub:
        reserve(arguments.push_to_hub, arguments.hub_public)
    launch.start(command, arguments.use_cpu)
    folder = Path(arguments.output_dir)
    push_after(folder, arguments, last=False)
    failure = None
    if arguments.task:
        _classify(arguments, benchmarks)
    elif benchmarks:
        # another Python finds out by itself if its vLLM can run on these devices
        name = backend.backend if backend.python == sys.executable else arguments.eval_backend
        options = ["--overwrite", "--dtype", arguments.dtype, "--backend", name, "--benchmarks", *benchmarks]
        options += ["--trust_remote_code"] if arguments.trust_remote_code else []
        options += ["--data", *(f"{name}={file}" for name, file in tests.items())] if tests else []
        options += ["--limit", str(arguments.eval_limit)] if arguments.eval_limit else []
        try:
            _generate([str(folder), *options], backend)
        except UserError as error:  # the card still shows the other results
            failure = error
    write_card(folder)  # again, now with the results
    push_after(folder, arguments)
    if failure:
        raise failure
    print(*closing(folder, arguments), sep="\n")
    return 0


def _backend(arguments: TrainArguments, benchmarks: list[str]) -> Choice | None:
    """The backend that generates the answers; None if there are none. Raises UserError, before the training, if it cannot run here."""
    if arguments.task or not benchmarks or not launch.is_first_machine():
        return None
    choice = resolve_anywhere(arguments.eval_backend, arguments.method)
    if choice.backend == "openai" and not os.environ.get("OPENAI_BASE_URL"):
        raise UserError(
            "--eval_backend openai needs the address of the endpoint in OPENAI_BASE_URL (http://host:8000/v1)"
        )
    if choice.reason:
        print(f"The evaluation will use transformers: {choice.reason}", flush=True)
    return choice


def _generate(words: list[str], backend: Choice) -> None:
    """Run `eval.all` with the backend: here, or with the Python that has it."""
    if backend.python == sys.executable:
        eval.all.main(words)
        return
    paths = [str(PROJECT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    status, _ = signals.run([backend.python, "-m", "eval.all", *words], env=environment)
    signals.check()
    if status:
        kind = UserError if status == UserError.status else RunFailure
        raise kind(f"the evaluation with {backend.python} ended with status {status}; see its own error above")


def _classify(arguments: TrainArguments, benchmarks: list[str]) -> None:
    """Run the evaluations of a classifier, with the out-of-domain sets that are available."""
    limit = ["--limit", str(arguments.eval_limit)] if arguments.eval_limit else []
    options = ["--model", arguments.output_dir, "--overwrite", "--dtype", arguments.dtype, *limit]
    if "glue" in benchmarks:
        for split in ("validation", "validation_mismatched") if arguments.task == "mnli" else ("validation",):
            eval.glue.main([*options, "--split", split])
    if "gluex" in benchmarks:
        eval.gluex.main([*options, "--at_hand", *(["--data", *arguments.eval_data] if arguments.eval_data else [])])
