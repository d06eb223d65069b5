"""Options in words: the parser of train.py, config files, and the config of a run.json.

A config file is flat YAML with the names of the options. `extends: FILE` (in the same folder) first loads the values of another
config. Command-line options override both.
"""

import argparse
import sys
from dataclasses import MISSING, asdict, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args

from ..errors import Parser, UserError, nearest, short
from ..files import PROJECT, of_the_project, read_yaml
from .arguments import TrainArguments

# What earlier versions did, by options that they lacked and whose default depends on others.
EARLIER = {"start_form": "residual"}
# Of options, in the order of --help.
GROUPS = ("run", "model", "method", "data", "classification", "objective", "training", "validation", "evaluation")


def _inner(kind) -> type:
    """int from `int | None`, str from `list[str] | None`."""
    if isinstance(kind, UnionType):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    return get_args(kind)[0] if get_args(kind) else kind


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


def _converter(kind):
    inner = _inner(kind)
    convert = _boolean if inner is bool else inner

    def or_none(text: str):
        if not text.strip():
            raise argparse.ArgumentTypeError("its value is empty; give it a value or leave it out")
        if text.lower() == "none" and inner is not bool:
            if NoneType not in get_args(kind):
                raise argparse.ArgumentTypeError("it needs a value, and none is not one; leave it out for its default")
            return None
        try:
            return convert(text)
        except (ValueError, OverflowError):
            wanted = {int: "a whole number", float: "a number"}.get(inner, "a value")
            raise argparse.ArgumentTypeError(f"{short(text)} is not {wanted}") from None

    or_none.__name__ = inner.__name__
    return or_none


@cache
def make_parser() -> argparse.ArgumentParser:
    """The parser of train.py; its --help lists every option by group with its default."""
    parser = Parser(
        prog="python train.py",
        allow_abbrev=False,
        description="Fine-tune a language model with BA-LoRA or one of its baselines.",
        epilog="Example: python train.py --config configs/nlg/tiny.yaml --output_dir runs/first --seed 1024",
    )
    parser.add_argument("--config", metavar="FILE", help="flat YAML file of the options below")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for item in fields(TrainArguments):
        more = {"nargs": "+"} if "list" in str(item.type) else {}
        if item.type is bool:
            more |= {"nargs": "?", "const": True}
        if "choices" in item.metadata:
            more["choices"] = item.metadata["choices"]
        default = None if item.default is MISSING else item.default
        groups[item.metadata["group"]].add_argument(
            f"--{item.name}",
            type=_converter(item.type),
            default=default,
            metavar=None if "choices" in more else _inner(item.type).__name__.upper(),
            help=f"{item.metadata['help']} [{'none' if default is None else default}]",
            **more,
        )
    return parser


def config_words(file: str | Path) -> list[str]:
    """The options of a config file as command-line words. Raises UserError naming the file and the key."""
    words, seen = [], []
    while file is not None:
        path = of_the_project(file)
        if path.resolve() in seen:
            what = "itself" if path.resolve() == seen[-1] else f"{file}, which extends it"
            raise UserError(f"{seen[-1]} extends {what}; name another config")
        seen.append(path.resolve())
        values = _read_config(path)
        parent = values.pop("extends", None)
        if not isinstance(parent, str | None):
            raise UserError(f"{file}: 'extends' is {short(parent)}; name one config file in the same folder")
        words = option_words(values, str(file)) + words
        file = parent and path.parent / parent
    return words


def _read_config(path: Path) -> dict:
    """The options of one file and its `extends`. Raises UserError naming the file and the key."""
    if not path.is_file():
        raise UserError(f"config file {path} does not exist; name a YAML file of options")
    if not path.read_bytes().strip():
        raise UserError(f"config file {path} is empty; put it back from a copy, or leave --config out")
    values = read_yaml(path)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {short(values)}; it must hold 'option: value' lines")
    if values.keys() & {"methods", "seeds"}:
        raise UserError(f"{path} is an experiment file; run it with: python -m ba_lora.experiments run {path}")
    known = [f.name for f in fields(TrainArguments)]
    for key in values:
        if key not in known and key != "extends":
            raise UserError(f"{path}: unknown option {short(key)}{nearest(key, known)}; remove or correct it")
    return values


def option_words(options: dict, place: str) -> list[str]:
    """{option: value} as command-line words. Raises UserError, beginning with `place`, for a value that no option can have."""
    words = []
    for key, value in options.items():
        values = (value or [None]) if isinstance(value, list) else [value]
        texts = [_word(each, f"{place}: '{key}'") for each in values]
        if len(texts) == 1:
            words.append(f"--{key}={texts[0]}")  # also for a value that begins with a dash
            continue
        for text in texts:
            if text.startswith("-"):
                raise UserError(f"{place}: '{key}' lists {short(text)}, which would be read as an option; remove it")
        words += [f"--{key}", *texts]
    return words


def _word(value, where: str) -> str:
    if isinstance(value, dict | list | set | tuple | bytes) or (isinstance(value, str) and "\0" in value):
        raise UserError(
            f"{where} is or holds {short(value)}; a text, a number, true or false, or a list of these is needed"
        )
    try:
        return "none" if value is None else str(value)
    except ValueError:
        raise UserError(f"{where} is a whole number of thousands of digits; correct it") from None


def parse(words: list[str] | None = None) -> TrainArguments:
    """Parse command-line words into checked options. Options of --config come first; the others override them."""
    words = sys.argv[1:] if words is None else words
    parser = make_parser()
    config = _config_of(words)
    given = vars(parser.parse_args((config_words(config) if config else []) + words))
    given.pop("config"), given.pop("debug")
    for name, value in given.items():
        if value == [None]:
            given[name] = None
    arguments = TrainArguments(**given)
    if not arguments.output_dir and not arguments.dry_run:
        raise UserError("--output_dir is missing: name the folder that the run is written to")
    return arguments


def run_words(config: str, words: list[str]) -> list[str]:
    """The words of one run of `config` with the options `words`. Without --output_dir it goes to runs/NAME OF THE CONFIG, followed
    by the method if the options change the config's."""
    plain, words = ["--config", config], ["--config", config, *words]
    if any(word.partition("=")[0] == "--output_dir" for word in words):
        return words
    own, now = (parse([*given, "--output_dir", "unnamed"]).method for given in (plain, words))
    name = Path(config).stem if now == own else f"{Path(config).stem}-{now}"
    return [*words, "--output_dir", str(Path("runs") / name)]


def _config_of(words: list[str]) -> str | None:
    finder = Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    return finder.parse_known_args(words)[0].config


def as_config(arguments: TrainArguments) -> dict:
    """The options that affect the result, for run.json: not where it is written or how it is shown."""
    aside = {"output_dir", "resume", "overwrite", "progress", "report_to", "push_to_hub", "hub_public", "dry_run"}
    aside |= {
        "devices",
        "teacher_cache",
        "decomposition_cache",
        "eval_backend",
    }  # run.json records what the two folders held
    config = {name: value for name, value in asdict(arguments).items() if name not in aside}
    file = config["deepspeed"] and Path(config["deepspeed"])
    if file and file.resolve().is_relative_to(PROJECT):  # the same name from whatever folder the run is started
        config["deepspeed"] = file.resolve().relative_to(PROJECT).as_posix()
    return config


def changed_options(recorded: dict, arguments: TrainArguments) -> dict[str, tuple]:
    """{option: (value in a run.json's config, value now)} for options that differ.

    Options that are missing because an earlier version wrote the config count as having their default values, or those of EARLIER.
    """
    defaults, now = {each.name: each.default for each in fields(TrainArguments)} | EARLIER, as_config(arguments)
    before = {name: recorded.get(name, defaults[name]) for name in now}
    return {name: (before[name], value) for name, value in now.items() if before[name] != value}
