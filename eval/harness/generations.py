"""An unfinished generations.jsonl (or likelihoods.jsonl, losses.jsonl): reading what it already holds, and appending the rest.

generation.json (likelihood.json, loss.json) beside it says how the lines were made. A killed run leaves complete lines and perhaps a torn last one, which
is dropped; a run that would make different lines is refused, naming the option that changed. Until the file is complete, each
line has a checksum of itself and of generation.json, so that altered lines and lines of another run are detected.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ba_lora.errors import UserError
from ba_lora.files import digest, read_json, write_json, write_sealed
from ba_lora.folders.checksums import check_line, checked_line

from .lines import read_line, to_line, write_lines
from .scores import GENERATIONS, LIKELIHOODS, LOSSES, SCORE, SCORED


class Lines(NamedTuple):
    """A file that grows by lines. A line is known by its id and its `second`, and holds what was `asked`, attributes of a request."""

    name: str
    config: str  # the file that says how the lines were made
    fields: tuple[str, ...]  # of every line
    asked: tuple[str, ...]
    second: str
    default: object = None  # of `second`


COMPLETIONS = Lines(
    *(
        GENERATIONS,
        "generation.json",
        ("id", "prompt", "completion", "finish_reason", "tokens"),
        ("prompt",),
        "sample",
        0,
    )
)
CHOICES = Lines(
    LIKELIHOODS,
    "likelihood.json",
    ("id", "choice", "continuation", "logprob", "tokens", "bytes"),
    ("context", "continuation"),
    "choice",
)
MEASURED = Lines(LOSSES, "loss.json", ("id", "measure", "text", "nats", "tokens"), ("text",), "measure")
WHOSE = ("model", "model_hash", "adapter_hash", "endpoint", "seed")  # the part of the config in a line's checksum
NOT_OPTIONS = {  # config keys that affect completions but are not option names
    "model_hash": "the weights of --model",
    "data_hash": "the rows of the data",
    "set": "the set",
    "half": "--half",
    "held_out_source": "--held_out",
    "held_out_hash": "the texts of --held_out",
    "prompts_source": "--prompts",
    "prompts_hash": "the texts of --prompts",
    "base_hash": "the weights of the base",
    "likelihood": "the kind of model",
    "adapter_hash": "the weights of --adapter",
    "weights": "the weights of the run",
    "settings_hash": "the config or tokenizer of --model, or the config of --adapter",
    "base": "the base of --model",
    "template_text": "the text of the template",
    "backend_version": "the version of the backend",
    "endpoint": "the endpoint (--base_url, --served_model, --send)",
    "stop": "the stop strings of --protocol",
}


def check(folder: Path, config: dict, wanted: dict[tuple[str, object], NamedTuple], kind: Lines = COMPLETIONS) -> dict:
    """Return the records that `folder` already holds, by (id, sample), (id, choice) or (id, measure). Changes nothing.

    Raises UserError if they were made with another config, or answer requests other than those of `wanted`.
    """
    path, remedy = folder / kind.name, "add --overwrite to start afresh, or name another --output_dir"
    if not path.is_file():
        return {}
    if not (folder / kind.config).is_file():
        raise UserError(f"{path} has no {kind.config} beside it, which says how it was made; {remedy}")
    known = read_json(folder / kind.config, kinds={"lines?": "a list"}, remedy=remedy)
    lines = known.pop("lines", None) or []
    for name, before in known.items():
        if config.get(name) != before:
            what = NOT_OPTIONS.get(name, f"--{name}")
            seen = "" if name.endswith(("_hash", "_text")) else f" ({before!r} before, {config.get(name)!r} now)"
            raise UserError(
                f"{path} is unfinished, and this run differs from it in {what}{seen}; change it back, {remedy}"
            )
    done, of = {}, _whose(config)
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        place = f"{path}, line {number}"
        record = read_line(line.decode("utf-8", "surrogateescape"), place, kind.fields)
        if "check" not in record and number <= len(lines):
            record["check"] = lines[number - 1]
        check_line(record, place, of)
        record.pop("check", None)
        key = (str(record["id"]), record.get(kind.second, kind.default))
        if key not in wanted or any(getattr(wanted[key], name) != record.get(name) for name in kind.asked):
            raise UserError(
                f"{place}: id {key[0]} is not asked now, or with another prompt: --data, --limit or --protocol has changed; "
                f"change it back, {remedy}"
            )
        done[key] = record
    return done


@contextmanager
def begin(folder: Path, config: dict, fresh: bool, kind: Lines = COMPLETIONS) -> Iterator[Callable[[dict], None]]:
    """Open the file in `folder` for the missing lines; yield the function that appends a record.

    fresh: keep nothing that is in the folder. Otherwise a torn last line is cut off.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / kind.name
    # an older score does not belong to these lines
    for name in SCORE, SCORED, *([kind.name] if fresh else []):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / kind.config, config)
    if not fresh and path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    of = _whose(config)
    with open(path, "a", encoding="utf-8") as file:

        def append(record: dict) -> None:
            file.write(to_line(checked_line(record, of)))
            file.flush()

        yield append


def seal(folder: Path, config: dict, records: Iterable[dict], kind: Lines = COMPLETIONS) -> None:
    """Note in the config's file the checksums of the lines of the other one, which is complete and no longer holds them."""
    of = _whose(config)
    write_sealed(folder / kind.config, config | {"lines": [checked_line(record, of)["check"] for record in records]})


class Grown(NamedTuple):
    """A file that is complete. records: in the order of the requests; resumed: how many were there before; seconds: for the others."""

    records: list[dict]
    resumed: int
    seconds: float


def grown(
    folder: Path,
    config: dict,
    wanted: dict[tuple[str, object], NamedTuple],
    kind: Lines,
    compute: Callable[[list[int]], Iterable[tuple[int, Any]]],
    record: Callable[[int, Any], dict],
    *,
    afresh: bool = False,
) -> Grown:
    """Compute what the file in `folder` lacks, and append each result as it comes; at the end the lines are in the order of `wanted`.

    compute: takes the numbers of the requests that are known → (number, result) of the others, in any order; not called if nothing is
    missing. record: (number, result) → the line. afresh: keep nothing that is there. Raises UserError if the lines there were made in
    another way.
    """
    keys = list(wanted)
    done = {} if afresh else check(folder, config, wanted, kind)
    known = [number for number, key in enumerate(keys) if key in done]
    found = compute(known) if len(known) < len(keys) else ()
    start, name = time.perf_counter(), kind.name.partition(".")[0]  # the model is open now
    with begin(folder, config, not done, kind) as append:
        for number, result in tqdm(found, total=len(keys), initial=len(known), desc=name, disable=None):
            done[keys[number]] = record(number, result)
            append(done[keys[number]])
    records = [done[key] for key in keys]
    seconds = round(time.perf_counter() - start, 2)
    write_lines(folder / kind.name, records)  # in the order of the requests, as in an uninterrupted run
    seal(folder, config, records, kind)
    return Grown(records, len(known), seconds)


def _whose(config: dict) -> str:
    return digest([config.get(name) for name in WHOSE])
