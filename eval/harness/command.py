"""What every benchmark shares: the options, opening what is to be evaluated, and asking it.

A benchmark generates D/generations.jsonl, then scores that file: D/score.json, and D/scored.jsonl with one line a task for
paired comparisons. The generations are appended as they come (`eval.harness.generations`), so that a killed run continues; the other
files are written whole or not at all. torch is imported where a model is opened, not before: it takes seconds, and --help
and --rescore do without.
"""

import argparse
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ba_lora.data.formats import question
from ba_lora.data.templates import NAMES, Template, check_template, default_template, make_template, template_of, turns
from ba_lora.errors import UserError, choose
from ba_lora.files import digest, hash_of
from ba_lora.folders.checksums import weights_of_run
from ba_lora.folders.ownership import claimed

from .scores import GENERATIONS, SCORE, SCORED, write_lines

# Benchmarks use these from here.
from .scores import check_field as check_field
from .scores import count_missing as count_missing
from .scores import facts_beside as facts_beside
from .scores import read_lines as read_lines
from .scores import summarise as summarise
from .scores import write_score as write_score

logger = logging.getLogger(__name__)

IN_TEXT = "special_tokens_in_text"  # what the template says of these; without any it makes no difference
BACKENDS = {"transformers": "transformers", "vllm": "vllm", "openai": "openai"}  # name → module that it needs


ADAPTERS = ("adapter_config.json", "ba_lora.json")  # what an adapter folder holds: PEFT's form, our own
# Small files that change completions.
SETTINGS = (
    *(
        *ADAPTERS,
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
    ),
    *("added_tokens.json", "vocab.json", "merges.txt", "spiece.model"),
)


class Request(NamedTuple):
    """One prompt: as text for generations.jsonl, as token ids for the backend, and a JSON value to score against.

    special: the names of the special tokens that stand in the texts that the prompt was made of.
    """

    id: str | int
    prompt: str
    ids: list[int]
    reference: object
    special: tuple[str, ...] = ()


class Sampling(NamedTuple):
    """How completions are drawn. Temperature 0 is greedy; `stop` strings end a completion and are not part of its text."""

    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()


def add_options(parser: argparse.ArgumentParser, protocols: Iterable[str], max_new_tokens: int) -> None:
    """Add the options that every benchmark has. Values are checked where they are read, so that errors are one line."""
    add = parser.add_argument
    add("--model", help="'tiny', a model folder, a hub id, or the folder of a training run (its base and adapter)")
    add("--adapter", help="adapter folder or run folder to put on --model")
    add("--data", help="file with the tasks")
    add("--rescore", metavar="FILE", help="score this file of {id, completion, reference} lines again; no model")
    add("--output_dir", metavar="D", help=f"folder for {GENERATIONS}, {SCORED} and {SCORE}")
    add("--overwrite", action="store_true", help="replace what --output_dir holds (default: an unfinished run goes on)")
    add("--limit", type=int, metavar="N", help="only the first N tasks")
    add("--protocol", default="ba-lora", help=f"one of: {', '.join(protocols)} (default: %(default)s)")
    add(
        "--template",
        help=f"prompt template, one of: {', '.join(NAMES)} (default: the run's own; tiny: plain; else alpaca)",
    )
    add("--samples", type=int, metavar="N", help="completions of each prompt (default: the protocol's)")
    add("--temperature", type=float, help="0 takes the likeliest token (default: the protocol's)")
    add("--top_p", type=float, help="sample from the likeliest tokens up to this mass (default: the protocol's)")
    add("--seed", type=int, help="of sampling (default: the protocol's)")
    add("--backend", default="transformers", help="transformers, vllm or openai (default: %(default)s)")
    add(
        "--max_new_tokens",
        type=int,
        default=max_new_tokens,
        help=f"tokens of a completion at most (default: {max_new_tokens or 'see below'})",
    )
    add("--batch_size", type=int, default=64, help="prompts generated at once (default: %(default)s)")
    add("--tensor_parallel", type=int, default=1, metavar="N", help="vllm: GPUs that share one model (default: 1)")
    add("--data_parallel", type=int, default=1, metavar="N", help="vllm: copies of the model (default: 1)")
    add("--max_model_len", type=int, metavar="N", help="vllm: tokens of prompt and completion (default: the model's)")
    add("--base_url", metavar="URL", help="openai: the endpoint, as http://host:8000/v1; its key is $OPENAI_API_KEY")
    add("--served_model", metavar="NAME", help="openai: the model's name there (default: the only one it has)")
    add("--send", default="ids", help="openai: prompts as token ids, or as text (default: %(default)s)")
    add("--dtype", default="float32", help="float32, bfloat16, float16, or auto: as saved (default: %(default)s)")
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the model; read it before")
    add("--debug", action="store_true", help="show the traceback of an error")


@contextmanager
def output_folder(args: argparse.Namespace, protocols: Iterable[str]) -> Iterator[Path]:
    """Check the options; keep the output folder for this process while the block runs.

    Raises UserError where another process has it, it is not ours, or it holds results and --overwrite is not given.
    """
    check_options(args, protocols)
    folder = Path(args.output_dir)
    source = Path(args.rescore).resolve() if args.rescore else None
    beside = (source.name,) if source and source.parent == folder.resolve() else ()  # scored into its own folder
    with claimed(folder, "evaluation", passed=beside):
        names = (
            (GENERATIONS, SCORED, SCORE) if args.rescore else (SCORED, SCORE)
        )  # generations alone: see eval.harness.generations
        there = [name for name in names if (folder / name).exists() and (folder / name).resolve() != source]
        if there and not args.overwrite:
            raise UserError(
                f"--output_dir {folder} already holds {', '.join(there)}; add --overwrite or name another folder"
            )
        yield folder


def check_options(args: argparse.Namespace, protocols: Iterable[str]) -> None:
    """Refuse what cannot work before anything slow starts."""
    if bool(args.model) == bool(args.rescore):
        raise UserError("give either --model M to generate and score, or --rescore FILE to score a file again")
    if args.rescore and args.adapter:
        raise UserError(f"--adapter {args.adapter} has no use with --rescore, which runs no model; leave it out")
    if not args.output_dir:
        raise UserError("--output_dir is missing; name the folder for the results")
    choose("protocol", args.protocol, protocols)
    for option in (
        *("limit", "max_new_tokens", "batch_size", "samples"),
        *("tensor_parallel", "data_parallel", "max_model_len"),
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
        _check_backend(args)


def _check_backend(args: argparse.Namespace) -> None:
    """Refuse a backend that is unknown or not installed, and an option of another one."""
    choose("backend", args.backend, BACKENDS)
    choose("--send", args.send, ("ids", "text"))
    for option, backend in (
        *(("tensor_parallel", "vllm"), ("data_parallel", "vllm"), ("max_model_len", "vllm")),
        *(("base_url", "openai"), ("served_model", "openai")),
    ):
        if getattr(args, option) not in (None, 1) and args.backend != backend:
            raise UserError(f"--{option} is an option of --backend {backend}, not of {args.backend}; leave it out")
    if args.backend == "openai" and not args.base_url:
        raise UserError("--backend openai needs --base_url URL, the address of the endpoint (http://host:8000/v1)")
    if find_spec(BACKENDS[args.backend]) is None:
        remedy = "pip install -r requirements.txt"
        if args.backend == "vllm":
            remedy = "on a GPU pip install -r requirements-vllm.txt; without one run sh scripts/install_vllm_cpu.sh"
        raise UserError(f"--backend {args.backend} is not installed in this Python; {remedy}")


class Subject(NamedTuple):
    """What is evaluated: `base` is the name of the model without its adapter, `template` how its prompts are written.

    `weights` names the model to open, the base or a fine-tuned one, and `adapter` the folder of what goes on it, or None.
    `model` is that, opened, where the backend is transformers; else None.
    """

    model: object
    tokenizer: object
    template: Template
    base: str
    weights: str
    adapter: str | None


def find_base(model: str, adapter: str | None = None) -> str:
    """The name of the base model behind --model and --adapter, without opening a weight."""
    from ba_lora.methods.save import find_run

    trained = _trained(model)
    return model if adapter or not trained else find_run(trained)[1] or model


def open_subject(args: argparse.Namespace | str, **options) -> Subject:
    """Open --model (name, model folder or run folder), with --adapter on it, its tokenizer and its template.

    The template is the one asked for, else the one the run recorded, else "plain" for the embedded model, else "alpaca".
    Without a command line: open_subject(name, adapter=…, template=…, dtype=…, trust_remote_code=…). Raises UserError when
    something cannot be opened.
    """
    from ba_lora.methods.save import find_run, load
    from ba_lora.models import load_model, load_tokenizer

    if isinstance(args, str):
        parser = argparse.ArgumentParser()
        add_options(parser, (), max_new_tokens=1)
        args = argparse.Namespace(**vars(parser.parse_args(["--model", args])) | options)
    if args.template:
        check_template(args.template)
    base, trained = find_base(args.model, args.adapter), args.adapter or _trained(args.model)
    saved = str(find_run(trained)[0]) if trained else None
    if saved and (Path(saved) / "task.json").is_file():
        raise UserError(f"{trained} is a classifier, which writes no text; evaluate it with python -m eval.glue")
    is_adapter = saved is not None and any((Path(saved) / name).is_file() for name in ADAPTERS)
    weights, adapter = (base, saved) if is_adapter else (saved or args.model, None)
    code = {"trust_remote_code": args.trust_remote_code}
    model = None
    if args.backend == "transformers" and trained:
        model = _to_accelerator(load(trained, base=args.model if args.adapter else None, dtype=args.dtype, **code))
    elif args.backend == "transformers":
        model = _to_accelerator(load_model(args.model, args.dtype, **code))
    own = saved is not None and (Path(saved) / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(saved if own else base, **code)
    recorded = template_of(trained) if trained else None
    if args.template or not recorded:
        in_text = recorded.special_tokens_in_text if recorded else "text"
        recorded = make_template(args.template or default_template(base), tokenizer, in_text)
    return Subject(model, tokenizer, recorded, base, weights, adapter)


def _trained(name: str) -> str | None:
    """`name` if it is what a training run saved: its folder, or its adapter or model folder (then the run's own)."""
    folder = Path(name)
    if folder.name == "model" and (folder / "config.json").is_file() and (folder.parent / "run.json").is_file():
        return str(folder.parent)
    return name if any((folder / file).is_file() for file in ("run.json", *ADAPTERS)) else None


def _to_accelerator(model):
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


def task_id(value) -> str | int:
    """The id of a task as the files have it: a text or a whole number; anything else (a date of Parquet) as its text."""
    return value if isinstance(value, str | int) else str(value)


def written(value: object) -> object:
    """A field as JSON has it: a date or a decimal number of Parquet as its text."""
    return str(value) if isinstance(value, date | Decimal) else value


def make_request(subject: Subject, key: str | int, prompt: str | list[dict], reference: object) -> Request:
    """The request of a question, or of a conversation that ends with the user, in the subject's template."""
    from ba_lora.data.instruction import encode_prompt
    from ba_lora.data.special_tokens import special_tokens

    messages = question(prompt) if isinstance(prompt, str) else prompt
    specials = special_tokens(subject.tokenizer, subject.template)
    special = tuple(name for message in messages for name in specials.found(message["content"]))
    end = subject.template.end or subject.tokenizer.eos_token
    parts = turns(subject.template, subject.tokenizer, messages)
    text = "".join(part + end * (number % 2) for number, part in enumerate(parts))
    return Request(key, text, encode_prompt(subject.tokenizer, subject.template, messages), reference, special)


def make_plain_request(subject: Subject, key: str | int, prompt: str, reference: object) -> Request:
    """The request of a text that is to be continued as it is, with the beginning-of-sequence token if the tokenizer adds one."""
    from ba_lora.data.instruction import encode_text
    from ba_lora.data.special_tokens import special_tokens

    template = getattr(subject, "template", None)
    special = tuple(special_tokens(subject.tokenizer, template).found(prompt))
    return Request(key, prompt, encode_text(subject.tokenizer, template, prompt), reference, special)


def sampling_of(args: argparse.Namespace, protocol: Sampling) -> Sampling:
    """The protocol's sampling, changed by the options that were given. UserError for samples that would all be the same."""
    given = {name: getattr(args, name) for name in ("temperature", "top_p", "samples", "seed")}
    sampling = protocol._replace(**{name: value for name, value in given.items() if value is not None})
    if sampling.samples > 1 and not sampling.temperature:
        raise UserError(
            f"{sampling.samples} samples at temperature 0 are one completion {sampling.samples} times; add --temperature 0.8"
        )
    return sampling


def ask(
    args: argparse.Namespace, folder: Path, subject: Subject, requests: Sequence[Request], sampling: Sampling, data: str
) -> tuple[list[dict], dict]:
    """Generate what D/generations.jsonl lacks → (its records in the order of the requests, how they came about).

    A record is {"id", "prompt", "completion", "reference", "finish_reason", "tokens"}, and "sample" where there are several.
    Options that were given replace the protocol's `sampling`. Another set of requests takes another `folder`. Raises
    UserError where the folder's generations were made in another way.
    """
    from ba_lora.inference.backends import Job, get_backend

    from .generations import begin, check, seal

    sampling = sampling_of(args, sampling)
    facts = generation_facts(args, subject, sampling, data)
    wanted = {(str(request.id), sample): request for request in requests for sample in range(sampling.samples)}
    if len(wanted) < len(requests) * sampling.samples:
        raise UserError(f"{data}: an id stands for more than one task; give every task an id of its own")
    config = {name: value for name, value in facts.items() if name != "sampling"} | facts["sampling"]
    special = _say_special(args, subject, requests)
    template = vars(subject.template)
    if not special or template[IN_TEXT] == "control":  # then the prompts are those of earlier versions
        template = {name: value for name, value in template.items() if name != IN_TEXT}
    config |= {"template_text": template}
    if args.backend != "openai":
        config |= {"settings_hash": _settings_hash(subject)}
    del config["batch_size"]  # no completion depends on it
    done = {} if args.overwrite else check(folder, config, wanted)
    missing = [key for key in wanted if key not in done]
    facts["resumed"] = len(done)
    jobs = [Job(wanted[key].ids, wanted[key].prompt, _seed(sampling.seed, key)) for key in missing]
    completions = get_backend(args.backend)(args, subject, jobs, sampling) if jobs else ()
    start, tokens = time.perf_counter(), 0  # what the backend opens is open now
    with begin(folder, config, fresh=not done) as append:
        for number, completion in tqdm(
            completions, total=len(wanted), initial=len(done), desc="generate", disable=None
        ):
            request, (_, sample) = wanted[missing[number]], missing[number]
            record = {"id": request.id} | ({"sample": sample} if sampling.samples > 1 else {})
            record |= {"prompt": request.prompt, "completion": completion.text, "reference": request.reference}
            record |= {"finish_reason": completion.finish_reason, "tokens": completion.tokens}
            append(record)
            done[missing[number]] = record
            tokens += completion.tokens
    seconds = time.perf_counter() - start
    facts |= {"seconds": round(seconds, 2), "tokens_per_second": round(tokens / seconds, 1) if jobs else None}
    records = [done[key] for key in wanted]
    write_lines(folder / GENERATIONS, records)  # in the order of the requests, as if nothing had come between
    seal(folder, config, records)
    return records, facts


def _say_special(args: argparse.Namespace, subject: Subject, requests: Sequence[Request]) -> bool:
    """Whether there are special tokens in the texts of the prompts; if so, one line says what they are taken for."""
    from ba_lora.data.special_tokens import report_line

    found = Counter(name for request in requests for name in request.special)
    if found:
        line = report_line(found, subject.template)
        if args.backend == "openai" and args.send == "text":
            line = (
                line.partition(";")[0]
                + "; with --send text the endpoint decides what they are (--send ids: as in training)"
            )
        logger.warning("%s", line)
    return bool(found)


def _seed(seed: int, key: tuple[str, int]) -> int:
    """The seed of one completion: it depends on no other."""
    return int(digest([seed, *key])[:8], 16)


def generation_facts(args: argparse.Namespace, subject: Subject, sampling: Sampling, data: str) -> dict:
    """How generations come about, for score.json: what only the generating part knows. The hashes are of what is opened here."""
    from ba_lora.inference.backends import backend_version

    local = args.backend != "openai"
    adapter = Path(subject.adapter) / "adapter_model.safetensors" if subject.adapter else None
    drawn = {name: getattr(sampling, name) for name in ("temperature", "top_p", "samples", "seed")}
    return {
        "model": args.model,
        "model_hash": weights_hash(subject.weights) if local else None,
        "adapter": args.adapter,
        "adapter_hash": hash_of(adapter) if local and adapter and adapter.is_file() else None,
        "weights": weights_of_run(args.adapter or args.model) if local else None,
        "base": subject.base,
        "template": subject.template.name,
        "data": data,
        "dtype": args.dtype,
        "backend": args.backend,
        "backend_version": backend_version(args.backend),
        "endpoint": None if local else {"base_url": args.base_url, "model": args.served_model, "send": args.send},
        "stop": list(dict.fromkeys([subject.template.end or subject.tokenizer.eos_token, *sampling.stop])),
        "sampling": drawn | {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size},
    }


def weights_hash(name: str) -> str | None:
    """SHA-256 of a model's safetensors file; of several, that of their names and hashes; None where none is on this machine."""
    # in the hub's cache a large file is a link to one whose name is its hash
    files = sorted(_place(name).glob("*.safetensors"))
    names = {file.name: file.resolve().name for file in files}
    hashes = {file.name: names[file.name] if len(names[file.name]) == 64 else hash_of(file) for file in files}
    return next(iter(hashes.values())) if len(hashes) == 1 else digest(hashes) if hashes else None


def _settings_hash(subject: Subject) -> str:
    """What completions depend on besides the weights: hash of the configs and tokenizer files of base, model and adapter."""
    places: dict[Path, None] = {}
    for name in filter(None, (subject.base, subject.weights, subject.adapter)):
        with suppress(UserError):  # the base of a whole model may be gone
            places[Path(name) if name == subject.adapter else _place(name)] = None
    files = [place / name for place in places for name in SETTINGS if (place / name).is_file()]
    return digest([[file.name, hash_of(file)] for file in files])


def _place(name: str) -> Path:
    """The folder with a model's files, in the hub's cache for a hub id."""
    from huggingface_hub import try_to_load_from_cache

    from ba_lora.models import locate

    place = locate(name)
    if not Path(place).is_dir():
        found = try_to_load_from_cache(place, "config.json")
        place = Path(found).parent if isinstance(found, str) else place
    return Path(place)
