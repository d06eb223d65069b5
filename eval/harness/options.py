"""The options and output folder shared by every benchmark. Imports no large library, so that --help answers at once."""

import argparse
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ba_lora.data.sources import check_source
from ba_lora.data.templates import NAMES
from ba_lora.errors import UserError, choose
from ba_lora.files import read_json
from ba_lora.folders.ownership import claimed
from ba_lora.folders.places import check_trained
from ba_lora.inference.backends import resolve
from ba_lora.methods.names import METHODS
from ba_lora.packages import check_name

from .scores import GENERATIONS, LIKELIHOODS, SCORE, SCORED

logger = logging.getLogger(__name__)

RESCORED = {GENERATIONS: "{id, completion, reference}", LIKELIHOODS: "{id, choice, logprob, tokens, bytes, reference}"}
OWN_FILE = "ba_lora.json"  # of an adapter that PEFT cannot open alone (ba_lora.methods.save, which imports torch)


def add_options(parser: argparse.ArgumentParser, protocols: Iterable[str], max_new_tokens: int) -> None:
    """Add the options that every benchmark has. Values are checked when they are read, so that errors are one line."""
    _add_model(parser, protocols, GENERATIONS, "ba-lora")
    add = parser.add_argument
    add(
        "--template",
        help=f"prompt template, one of: {', '.join(NAMES)} (default: the run's own; tiny: plain; else alpaca)",
    )
    add("--samples", type=int, metavar="N", help="completions of each prompt (default: the protocol's)")
    add("--temperature", type=float, help="0 takes the likeliest token (default: the protocol's)")
    add("--top_p", type=float, help="sample from the likeliest tokens up to this mass (default: the protocol's)")
    add("--seed", type=int, help="seed of sampling (default: the protocol's)")
    add(
        "--backend",
        default="transformers",
        help="transformers, vllm, openai, or auto: vllm where it can run, else transformers (default: %(default)s)",
    )
    add(
        "--max_new_tokens",
        type=int,
        default=max_new_tokens,
        help=f"token limit of a completion (default: {max_new_tokens or 'see below'})",
    )
    add("--batch_size", type=int, default=64, help="prompts generated at once (default: %(default)s)")
    add(
        "--processes",
        type=int,
        metavar="N",
        help="transformers: processes that share the prompts, one per GPU (default: $NPROC, else all GPUs, else 1)",
    )
    add(
        "--base_url", metavar="URL", help="openai: the endpoint (default: $OPENAI_BASE_URL); its key is $OPENAI_API_KEY"
    )
    add("--served_model", metavar="NAME", help="openai: the model's name there (default: its only model)")
    add("--send", default="ids", help="openai: send prompts as token ids, or as text (default: %(default)s)")


def add_likelihood_options(parser: argparse.ArgumentParser, protocols: Iterable[str]) -> None:
    """Add the options of a benchmark that compares log-likelihoods; the first of `protocols` is its default.

    The options of completions are there too, for the functions that read them, but not on the command line.
    """
    protocols = list(protocols)
    _add_model(parser, protocols, LIKELIHOODS, protocols[0])
    add = parser.add_argument
    add(
        "--backend",
        default="transformers",
        help="transformers, vllm, or auto: vllm where it can run, else transformers (default: %(default)s)",
    )
    add("--batch_size", type=int, default=64, help="texts computed at once (default: %(default)s)")
    add(
        "--held_out",
        metavar="FILE",
        help="texts for the loss that is printed beside the score: lines of text, or a table with a column text (default: 200 "
        "sentences of Wikipedia that a registry package carries)",
    )
    parser.set_defaults(
        **dict.fromkeys(("template", "samples", "temperature", "top_p", "seed", "max_new_tokens", "base_url")),
        processes=1,
        served_model=None,
        send="ids",
    )


def _add_model(parser: argparse.ArgumentParser, protocols: Iterable[str], lines: str, protocol: str) -> None:
    """Add what both kinds of benchmark have. lines: the file that grows."""
    add = parser.add_argument
    add("--model", help="'tiny', a model folder, a hub id, or the folder of a training run (its base and adapter)")
    add("--adapter", help="adapter folder or run folder to load on --model")
    add("--data", help="file with the tasks")
    add("--rescore", metavar="FILE", help=f"score this file of {RESCORED[lines]} lines again; no model")
    add("--output_dir", metavar="D", help=f"folder for {lines}, {SCORED} and {SCORE}")
    add("--overwrite", action="store_true", help="replace the results there (default: continue an unfinished run)")
    add("--limit", type=int, metavar="N", help="only the first N tasks")
    add("--protocol", default=protocol, help=f"one of: {', '.join(protocols)} (default: %(default)s)")
    add("--tensor_parallel", type=int, default=1, metavar="N", help="vllm: GPUs that share one model (default: 1)")
    add(
        "--data_parallel",
        type=int,
        metavar="N",
        help="vllm: copies of the model that share the prompts (default: $NPROC or all GPUs; without GPUs 1)",
    )
    add("--max_model_len", type=int, metavar="N", help="vllm: tokens of prompt and completion (default: the model's)")
    add("--dtype", default="float32", help="float32, bfloat16, float16, or auto: as saved (default: %(default)s)")
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the model; read it first")
    add("--debug", action="store_true", help="show the traceback of an error")


def default_folder(model: str, adapter: str | None = None) -> Path:
    """Return the default folder for results: in the run's own folder, else under runs/eval."""
    place = Path(adapter or model)
    if (place / "run.json").is_file():
        return place / "eval"
    return Path("runs") / "eval" / (place.name or str(place)).replace(":", "-")


@contextmanager
def output_folder(args: argparse.Namespace, protocols: Iterable[str]) -> Iterator[Path]:
    """Check the options, and reserve the output folder for this process during the block.

    Raises UserError if another process uses it, if it is not ours, or if it holds results and --overwrite is not given.
    """
    check_options(args, protocols)
    folder = Path(args.output_dir)
    source = Path(args.rescore).resolve() if args.rescore else None
    beside = (source.name,) if source and source.parent == folder.resolve() else ()  # scored into the file's own folder
    with claimed(folder, "evaluation", passed=beside):
        # generations and likelihoods alone are allowed: see eval.harness.generations
        names = (GENERATIONS, LIKELIHOODS, SCORED, SCORE) if args.rescore else (SCORED, SCORE)
        there = [name for name in names if (folder / name).exists() and (folder / name).resolve() != source]
        if there and not args.overwrite:
            raise UserError(
                f"--output_dir {folder} already holds {', '.join(there)}; add --overwrite or name another folder"
            )
        yield folder


def check_options(args: argparse.Namespace, protocols: Iterable[str]) -> None:
    """Refuse invalid options before anything slow starts."""
    if bool(args.model) == bool(args.rescore):
        raise UserError("give either --model M to generate and score, or --rescore FILE to score a file again")
    if args.rescore and args.adapter:
        raise UserError(f"--adapter {args.adapter} has no effect with --rescore, which runs no model; leave it out")
    if not args.output_dir:
        raise UserError("--output_dir is missing; name the folder for the results")
    choose("protocol", args.protocol, protocols)
    for option in (
        *("limit", "max_new_tokens", "batch_size", "samples"),
        *("processes", "tensor_parallel", "data_parallel", "max_model_len"),
    ):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} is {value}; it must be at least 1")
    if args.temperature is not None and not args.temperature >= 0:
        raise UserError(f"--temperature is {args.temperature:g}; it must be at least 0")
    if args.top_p is not None and not 0 < args.top_p <= 1:
        raise UserError(f"--top_p is {args.top_p:g}; it must be above 0 and at most 1")
    if args.seed is not None and args.seed < 0:
        raise UserError(f"--seed is {args.seed}; it must be at least 0")
    if args.model:
        check_backend(args)
    check_models(args.model, args.adapter)
    if args.data:
        check_source(args.data)
    if getattr(args, "held_out", None) and not Path(args.held_out).is_file():
        raise UserError(f"--held_out {args.held_out} does not exist; give a file of texts")


def check_models(model: str | None, adapter: str | None) -> None:
    """Refuse a model or an adapter that is known to be missing, before anything is opened."""
    for option, name in (("--model", model), ("--adapter", adapter)):
        if name and name != "tiny" and not check_name(name):
            check_trained(name, option)


@cache
def _say(line: str) -> None:
    """Warn once: several benchmarks may follow one another in this process."""
    logger.warning("%s", line)


def _method(args: argparse.Namespace) -> str | None:
    """The method of a model that PEFT cannot open alone, from its ba_lora.json; None for any other."""
    for place in filter(None, (args.adapter, args.model)):
        for file in (Path(place) / OWN_FILE, Path(place) / "adapter" / OWN_FILE):
            if file.is_file():
                method = read_json(file, kinds={"method?": "a text"}).get("method")
                return method if method in METHODS else None
    return None


def check_backend(args: argparse.Namespace) -> None:
    """Settle what "auto" is; refuse a backend that cannot be used here, and an option of another backend."""
    likelihoods = hasattr(args, "held_out")
    if likelihoods and args.backend == "openai":
        raise UserError("--backend openai gives no log-likelihoods of texts; use transformers or vllm")
    args.backend, _, reason = resolve(args.backend, _method(args))
    if reason:
        _say(f"the {'likelihoods' if likelihoods else 'completions'} come from transformers: {reason}")
    choose("--send", args.send, ("ids", "text"))
    for option, backend in (
        *(("tensor_parallel", "vllm"), ("data_parallel", "vllm"), ("max_model_len", "vllm")),
        *(("base_url", "openai"), ("served_model", "openai"), ("processes", "transformers")),
    ):
        if getattr(args, option) not in (None, 1) and args.backend != backend:
            raise UserError(f"--{option} is an option of --backend {backend}, not of {args.backend}; leave it out")
    if args.backend == "openai":
        args.base_url = args.base_url or os.environ.get("OPENAI_BASE_URL")
    if args.backend == "openai" and not args.base_url:
        raise UserError("--backend openai needs --base_url URL, the address of the endpoint (http://host:8000/v1)")
