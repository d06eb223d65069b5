"""The last lines of a run: what to do with it next, then one line with its scores and its folder."""

import json
import shlex
from pathlib import Path

import eval.all
from eval.harness.scores import SCORE

from ..folders.checksums import read_record
from ..methods.names import method_of
from ..training.arguments import TrainArguments


def closing(folder: Path, arguments: TrainArguments) -> list[str]:
    """The lines for a finished run in `folder`; paths are as the user wrote them."""
    width = max(map(len, commands := next_commands(folder, arguments)))
    return [
        "Next:",
        *(f"  {name:{width}}  {command}" for name, command in commands.items()),
        f"{folder.name}: {'; '.join(scores(folder)) or 'not evaluated'}; everything is in {folder}",
    ]


def next_commands(folder: Path, arguments: TrainArguments) -> dict[str, str]:
    """{purpose: command}: chat, merge, load in Python, evaluate further; only those that exist for the run's method and task."""
    run, how = shlex.quote(str(folder)), method_of(arguments.method)
    loaded = f"import ba_lora; model = ba_lora.load({_text(folder)})"
    commands = {} if arguments.task else {"chat": f"python -m ba_lora.chat --model {run}"}
    if how.files == "peft" and not arguments.task:
        whole = f"{loaded}; model.merge_and_unload().save_pretrained({_text(f'{folder}-merged')})"
        commands["merge"] = f"python -c {shlex.quote(whole)}"
    if how.files == "own" or arguments.task:
        commands["in Python"] = loaded
    else:
        kind, package = ("AutoModel", "transformers") if how.files == "model" else ("AutoPeftModel", "peft")
        opened = f"model = {kind}ForCausalLM.from_pretrained({_text(folder / how.saved)})"
        commands["in Python"] = f"from {package} import {kind}ForCausalLM; {opened}"
    if arguments.task:
        return commands | {"evaluate": f"python -m eval.gluex --model {run}"}
    others = [name for name in eval.all.BENCHMARKS if name not in (arguments.benchmarks or ())]
    other = next(iter(others), eval.all.MT_BENCH)
    return commands | {"evaluate": f"python -m eval.all {run} --benchmarks {other} --backend auto"}


def _text(path: str | Path) -> str:
    """A path as a string of Python, in double quotes: the shell's are single."""
    return json.dumps(str(path), ensure_ascii=False)


def scores(folder: Path) -> list[str]:
    """One text per score of the run: the value as in the tables, its uncertainty, and what generated it."""
    return [_score(read_record(file)) for file in sorted((folder / "eval").glob(f"**/{SCORE}"))]


def _score(score: dict) -> str:
    name, scale = score["benchmark"], 100
    if name == eval.all.MT_BENCH:
        score, scale = score | (score["first_turn"] or {}), eval.all.BENCHMARKS[name].scale
    if score.get("score") is None:
        return f"{name} has answers and no score"
    error = "" if score.get("stderr") is None else f" ± {scale * score['stderr']:.2f}"
    text = f"{name} {scale * score['score']:.2f}{error} (n = {score['n']}"
    if score.get("backend"):
        count = score.get("processes") or 1
        text += f", {score['backend']}, {count} process{'es' if count > 1 else ''}"
    return f"{text})"
