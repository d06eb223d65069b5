"""Asks a model every prompt of a benchmark; completions are appended to D/generations.jsonl, so that a killed run can continue."""

import argparse
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ba_lora.data.templates import end_id
from ba_lora.errors import UserError, redacted
from ba_lora.files import digest, hash_of
from ba_lora.folders.checksums import weights_of_run
from ba_lora.inference.backends import backend_version, copies, get_backend
from ba_lora.inference.completions import Completion
from ba_lora.inference.requests import Job, Request, Sampling
from ba_lora.inference.subject import Subject, open_subject, settings_hash, weights_hash
from ba_lora.machine.devices import gpus

from .generations import begin, check, seal
from .lines import write_lines
from .scores import GENERATIONS

logger = logging.getLogger(__name__)

IN_TEXT = "special_tokens_in_text"  # how the template treats these; without any it makes no difference


def subject_of(args: argparse.Namespace) -> Subject:
    """Call `open_subject` with the options of a command; only the transformers backend opens the model here.

    Fills in how many copies of the model share the prompts: --processes, or --data_parallel of vLLM.
    """
    count = copies(args.backend, args.processes, args.data_parallel, args.tensor_parallel)
    args.processes, args.data_parallel = (count, None) if args.backend == "transformers" else (None, count)
    return open_subject(
        args.model,
        adapter=args.adapter,
        template=args.template,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
        with_model=args.backend == "transformers",
        processes=args.processes or 1,
    )


def sampling_of(args: argparse.Namespace, protocol: Sampling) -> Sampling:
    """Return the protocol's sampling, changed by the given options. Raises UserError if all samples would be the same."""
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
    """Generate what D/generations.jsonl lacks → (its records in the order of the requests, how they were generated).

    A record is {"id", "prompt", "completion", "reference", "finish_reason", "tokens"}, plus "sample" if there are several.
    Given options override the protocol's `sampling`. Another set of requests needs another `folder`. Raises UserError if the
    folder's generations were made in another way.
    """
    sampling = sampling_of(args, sampling)
    facts = generation_facts(args, subject, sampling, data)
    wanted = {(str(request.id), sample): request for request in requests for sample in range(sampling.samples)}
    if len(wanted) < len(requests) * sampling.samples:
        raise UserError(f"{data}: an id stands for more than one task; give every task an id of its own")
    config = {name: value for name, value in facts.items() if name != "sampling"} | facts["sampling"]
    special = _say_special(args, subject, requests)
    template = vars(subject.template)
    if not special or template[IN_TEXT] == "control":  # the prompts are then those of earlier versions
        template = {name: value for name, value in template.items() if name != IN_TEXT}
    config |= {"template_text": template}
    if args.backend != "openai":
        config |= {"settings_hash": settings_hash(subject)}
    if args.backend != "transformers" or not gpus():  # where completions do not depend on it
        del config["batch_size"], config["processes"]
    done = {} if args.overwrite else check(folder, config, wanted)
    missing = [key for key in wanted if key not in done]
    facts["resumed"] = len(done)
    jobs = [Job(wanted[key].ids, wanted[key].prompt, _seed(sampling.seed, key)) for key in missing]
    completions = get_backend(args.backend)(args, subject, jobs, sampling) if jobs else ()
    start, tokens = time.perf_counter(), 0  # the backend has opened its model now
    with begin(folder, config, fresh=not done) as append:
        for number, completion in tqdm(
            completions, total=len(wanted), initial=len(done), desc="generate", disable=None
        ):
            request, (_, sample) = wanted[missing[number]], missing[number]
            record = _record(request, completion, {"sample": sample} if sampling.samples > 1 else {})
            append(record)
            done[missing[number]] = record
            tokens += completion.tokens
    seconds = time.perf_counter() - start
    facts |= {"seconds": round(seconds, 2), "tokens_per_second": round(tokens / seconds, 1) if jobs else None}
    records = [done[key] for key in wanted]
    write_lines(folder / GENERATIONS, records)  # in the order of the requests, as in an uninterrupted run
    seal(folder, config, records)
    return records, facts


def complete(subject: Subject, requests: Sequence[Request], *, max_new_tokens: int, batch_size: int) -> list[dict]:
    """Ask an open model every prompt, greedily and without files → records as those of `ask`, in the order of the requests."""
    from ba_lora.inference.local import generate

    completions = generate(
        [request.ids for request in requests],
        model=subject.model,
        tokenizer=subject.tokenizer,
        end=end_id(subject.tokenizer, subject.template),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=False,
    )
    return [_record(request, completion) for request, completion in zip(requests, completions, strict=True)]


def _record(request: Request, completion: Completion, sample: dict | None = None) -> dict:
    """Return a line of generations.jsonl."""
    record = {"id": request.id} | (sample or {})
    record |= {"prompt": request.prompt, "completion": completion.text, "reference": request.reference}
    return record | {"finish_reason": completion.finish_reason, "tokens": completion.tokens}


def _say_special(args: argparse.Namespace, subject: Subject, requests: Sequence[Request]) -> bool:
    """Return True if the texts of the prompts contain special tokens; if so, print one line on how they are treated."""
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
    """Return the seed of one completion, which is independent of all others."""
    return int(digest([seed, *key])[:8], 16)


def generation_facts(args: argparse.Namespace, subject: Subject, sampling: Sampling, data: str) -> dict:
    """Return how generations are made, for score.json: facts known only to the generating step. Hashes are of what is opened here."""
    local = args.backend != "openai"
    drawn = {name: getattr(sampling, name) for name in ("temperature", "top_p", "samples", "seed")}
    return model_facts(args, subject, data) | {
        "template": subject.template.name,
        "processes": args.processes or args.data_parallel,
        "endpoint": None
        if local
        else {"base_url": redacted(args.base_url), "model": args.served_model, "send": args.send},
        "stop": list(dict.fromkeys([subject.template.end or subject.tokenizer.eos_token, *sampling.stop])),
        "sampling": drawn | {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size},
    }


def model_facts(args: argparse.Namespace, subject: Subject, data: str) -> dict:
    """Return which model is evaluated, by which backend, on which data, for score.json. Hashes are of what is opened here."""
    local = args.backend != "openai"
    adapter = Path(subject.adapter) / "adapter_model.safetensors" if subject.adapter else None
    return {
        "model": args.model,
        "model_hash": weights_hash(subject.weights) if local else None,
        "adapter": args.adapter,
        "adapter_hash": hash_of(adapter) if local and adapter and adapter.is_file() else None,
        "weights": weights_of_run(args.adapter or args.model) if local else None,
        "base": subject.base,
        "data": data,
        "dtype": args.dtype,
        "backend": args.backend,
        "backend_version": backend_version(args.backend),
    }
