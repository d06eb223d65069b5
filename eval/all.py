"""Several benchmarks on one model, and its row of the paper's table for generation.

Each benchmark is its own command (python -m eval.gsm8k and the others), with results in its own folder. Benchmarks with a
score are kept, and interrupted ones continue. If a benchmark fails, the others still run; it is named at the end, and the
exit status is not 0. Without a --judge, MT-Bench's answers are written, to be judged later.
"""

import argparse
import importlib
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

from ba_lora.errors import Parser, UserError, choose, run_cli
from ba_lora.files import atomic_write
from ba_lora.folders.checksums import read_record
from ba_lora.folders.ownership import claimed

from .harness.command import Benchmark
from .harness.command import make_parser as make_parser_of
from .harness.options import check_models, default_folder
from .harness.scores import SCORE


class Row(NamedTuple):
    """A benchmark. scale: from its score to the column's unit. Its module has a `BENCHMARK` and a `main`."""

    module: str
    title: str  # of its column in tables
    scale: float = 100


MT_BENCH = "mt_bench"
GENERATED = "tinymath"  # generated problems, which eval.gsm8k asks in place of GSM8K's
BENCHMARKS = {
    "gsm8k": Row("eval.gsm8k", "GSM8K"),
    "math": Row("eval.hendrycks_math", "MATH"),
    "humaneval": Row("eval.humaneval", "HumanEval"),
    "mbpp": Row("eval.mbpp", "MBPP"),
    MT_BENCH: Row("eval.mt_bench", "MT-Bench", 1),
}
BIAS = {  # asked for by name; not part of the paper's row
    "crows_pairs": Row("eval.crows_pairs", "CrowS-Pairs"),
    "stereoset": Row("eval.stereoset", "StereoSet"),
    "bbq": Row("eval.bbq", "BBQ"),
    "winobias": Row("eval.winobias", "WinoBias"),
    "winogender": Row("eval.winogender", "Winogender"),
}
ALL = BENCHMARKS | BIAS

EXAMPLES = """\
MODEL: 'tiny', a model folder, a hub id, or the folder of a training run (its base and adapter). ADAPTER: an adapter folder or
run folder to load on MODEL.

examples:
  the embedded model, 20 tasks each, without the hub
    python -m eval.all tiny --limit 20 --benchmarks gsm8k humaneval
  a training run on local copies of the data, with vLLM
    python -m eval.all runs/ba-lora --data gsm8k=test.jsonl math=math.jsonl mbpp=mbpp.jsonl --backend vllm
  with MT-Bench, judged by a model behind an OpenAI-compatible endpoint
    python -m eval.all runs/ba-lora --judge JUDGE --judge_url http://host:8000/v1
  measures of bias, each beside what the model can do (docs/bias.md)
    python -m eval.all runs/ba-lora --benchmarks crows_pairs stereoset winobias winogender

All other options are passed to the benchmarks: python -m eval.gsm8k --help."""


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m eval.all",
        usage="python -m eval.all MODEL [ADAPTER] [--option value ...]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--benchmarks",
        nargs="+",
        metavar="NAME",
        help=f"from {', '.join(ALL)} (default: the first five, mt_bench with a --judge)",
    )
    add("--data", nargs="+", default=[], metavar="NAME=FILE", help="data of a benchmark (default: its own)")
    add("--output_dir", metavar="D", help="results go to D/NAME (default: eval/ of a run, else runs/eval/MODEL)")
    add("--overwrite", action="store_true", help="repeat benchmarks that have a score")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 0 if every benchmark has its score; raises UserError otherwise."""
    words = sys.argv[1:] if argv is None else argv
    named = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    args, more = make_parser().parse_known_args(words[len(named) :])
    if not 1 <= len(named) <= 2:
        raise UserError(f"name a model, and optionally an adapter, before the options; got {len(named)} names")
    model, adapter = named[0], named[1] if len(named) > 1 else None
    chosen = args.benchmarks or [name for name in BENCHMARKS if name != MT_BENCH or _has(more, "--judge")]
    chosen = [choose("--benchmarks", name, ALL) for name in chosen]
    data = dict(read_pair("--data", text) for text in args.data)
    check_models(model, adapter)
    for name in chosen:  # an option that is wrong for one is refused before any of them runs
        make_parser_of(_benchmark(name)).parse_args(options_for(name, more))
    folder = Path(args.output_dir) if args.output_dir else default_folder(model, adapter)
    with claimed(folder, "evaluations"):
        return _evaluate(args, folder, model, adapter, chosen, data, more)


def _evaluate(args: argparse.Namespace, folder: Path, model: str, adapter: str | None, chosen, data, more) -> int:
    """Run the benchmarks `chosen` and write row.md."""
    failed = {}
    for name in chosen:
        if (folder / name / SCORE).is_file() and not args.overwrite:
            print(f"{name}: kept {folder / name / SCORE}; --overwrite repeats it")
            continue
        words = ["--model", model, *(["--adapter", adapter] if adapter else [])]
        words += ["--output_dir", str(folder / name), *(["--overwrite"] if args.overwrite else [])]
        words += [*(["--data", data[name]] if name in data else []), *options_for(name, more)]
        if name == MT_BENCH and not any(_has(more, option) for option in ("--judge", "--generate_only")):
            words += ["--generate_only"]
        try:
            importlib.import_module(ALL[name].module).main(words)
        except UserError as error:
            failed[name] = str(error)
    text = row(folder, Path(adapter or model).name)
    with atomic_write(folder / "row.md") as file:
        file.write(text + "\n")
    if not set(chosen) <= set(BIAS):
        print(text)
    if failed:
        raise UserError("; ".join(f"{name} has no score: {reason}" for name, reason in failed.items()))
    return 0


def row(folder: Path, name: str) -> str:
    """Return the paper's row from the scores in `folder`, as a table, followed by what each figure is.

    Percent, MT-Bench's first turn from 1 to 10, and the mean of all five if all are present: a mix, as in the paper.
    """
    scores = {bench: read_record(folder / bench / SCORE) for bench in BENCHMARKS if (folder / bench / SCORE).is_file()}
    if MT_BENCH in scores:
        scores[MT_BENCH] |= scores[MT_BENCH]["first_turn"] | {"metric": "judge's rating of the first turn, 1 to 10"}
    scores = {bench: score for bench, score in scores.items() if score["score"] is not None}
    values = {bench: score["score"] * BENCHMARKS[bench].scale for bench, score in scores.items()}
    cells = [f"{values[bench]:.2f}" if bench in values else "–" for bench in BENCHMARKS]
    mean = f"{sum(values.values()) / len(values):.2f}" if len(values) == len(BENCHMARKS) else "–"
    titles = {bench: row.title for bench, row in BENCHMARKS.items()}
    titles |= {bench: GENERATED for bench, score in scores.items() if score["benchmark"] == GENERATED}
    lines = [
        f"| model | {' | '.join(titles.values())} | Avg |",
        f"| --- |{' ---: |' * (len(titles) + 1)}",
        f"| {name} | {' | '.join(cells)} | {mean} |",
        "",
    ]
    for bench, score in scores.items():
        what = f"{score['benchmark']}, {score['metric']}, protocol {score['protocol']} {score['protocol_version']}"
        lines.append(f"{titles[bench]}: {what}, n = {score['n']}, standard error {_error(bench, score)}")
    return "\n".join(lines)


def _error(bench: str, score: dict) -> str:
    if score["stderr"] is None:
        return "unknown"
    return f"{score['stderr'] * BENCHMARKS[bench].scale:.2f}"


def read_pair(option: str, text: str) -> tuple[str, str]:
    """Split "gsm8k=test.jsonl" into ("gsm8k", "test.jsonl")."""
    name, sign, file = text.partition("=")
    if not sign or not file:
        raise UserError(f"{option} takes NAME=FILE, got '{text}'; for example gsm8k=test.jsonl")
    return choose(option, name, ALL), file


def check_data(name: str, data: str | None, base: str, limit: int | None = None) -> None:
    """Read the data of a benchmark; raises its UserError if that fails. base: the model that will be asked."""
    _benchmark(name).load(data, base, limit)


def _benchmark(name: str) -> Benchmark:
    return importlib.import_module(ALL[name].module).BENCHMARK


def _has(words: list[str], option: str) -> bool:
    return any(word.partition("=")[0] == option for word in words)


def options_for(name: str, words: list[str]) -> list[str]:
    """Return the given options, with their values, that the benchmark `name` takes; also those that none takes, for its parser."""
    options = {bench: list(make_parser_of(_benchmark(bench))._option_string_actions) for bench in ALL}
    kept, takes = [], True
    for word in words:
        if word.startswith("--"):
            by = [bench for bench, known in options.items() if any(o.startswith(word.partition("=")[0]) for o in known)]
            takes = name in by or not by
        if takes:
            kept.append(word)
    return kept


if __name__ == "__main__":
    run_cli(main)
