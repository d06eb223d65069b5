"""One benchmark as a command: its parser, its output folder, and what `eval.all` and the experiments ask of it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ba_lora.errors import Parser

from .options import add_likelihood_options, add_options, output_folder


class Benchmark(NamedTuple):
    """A benchmark of generated text, or of log-likelihoods. Its module `eval.NAME` has it as BENCHMARK, and `main`, which runs it."""

    module: str  # as in python -m MODULE
    text: str  # of --help
    examples: str
    protocols: dict[str, str]  # name → version
    max_new_tokens: int | None  # default of the option; None: the protocol's, see `evaluate`
    add_options: Callable[[argparse.ArgumentParser], None]  # its own options
    load: Callable[[str | None, str, int | None], list]  # its tasks, from (--data, the base model's name, --limit)
    evaluate: Callable[[argparse.Namespace, Path], int]  # writes the results into the folder; 0 if all is written
    generates: bool = True  # completions; else it compares log-likelihoods


def make_parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"python -m {benchmark.module}",
        description=benchmark.text,
        epilog=benchmark.examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if benchmark.generates:
        add_options(parser, benchmark.protocols, max_new_tokens=benchmark.max_new_tokens)
    else:
        add_likelihood_options(parser, benchmark.protocols)
    benchmark.add_options(parser)
    return parser


def run(benchmark: Benchmark, argv: list[str] | None = None) -> int:
    """Run the command. Returns 0 when everything requested is written; raises UserError otherwise."""
    args = make_parser(benchmark).parse_args(argv)
    with output_folder(args, benchmark.protocols) as folder:
        return benchmark.evaluate(args, folder)
