"""Asks a model the log-likelihood of each candidate; lines are appended to D/likelihoods.jsonl, so that a killed run can continue."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ba_lora.errors import UserError
from ba_lora.inference.pairs import Likelihood, Pair
from ba_lora.inference.subject import Subject, settings_hash, trained_folder

from ..harness.ask import model_facts, subject_of
from ..harness.generations import CHOICES, grown

CAUSAL, MASKED = "log-likelihood", "pseudo-log-likelihood"


class Candidate(NamedTuple):
    """One text of an item: `choice` names it within the item; reference: a JSON value to score against."""

    id: str
    choice: str
    context: str
    continuation: str
    reference: dict


def open_model(args: argparse.Namespace) -> tuple[Subject, str]:
    """(the evaluated model, the kind of likelihood that it gives). An encoder gives pseudo-log-likelihoods."""
    if args.adapter or trained_folder(args.model) or not _is_encoder(args.model, args.trust_remote_code):
        return subject_of(args), CAUSAL
    from ba_lora.inference.pseudo import open_encoder
    from ba_lora.models import load_tokenizer

    if args.backend == "vllm":
        raise UserError(
            f"--backend vllm: {args.model} is an encoder, which vLLM gives no pseudo-log-likelihood of; use transformers"
        )
    model, tokenizer = open_encoder(args.model, args.dtype), load_tokenizer(args.model)
    return Subject(model, tokenizer, None, args.model, args.model, None), MASKED  # no prompt is written


def _is_encoder(name: str, trust: bool) -> bool:
    """Return True if the config names a masked language model, or the body of one."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig

    from ba_lora.models import errors_named, locate

    place = locate(name)
    with errors_named(name, place):
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust)
    named = (config.architectures or [""])[0]
    masked = MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return masked is not None and named != getattr(causal, "__name__", None)


def ask_likelihoods(
    args: argparse.Namespace, folder: Path, candidates: Sequence[Candidate], facts: dict
) -> tuple[list[dict], dict]:
    """Compute what D/likelihoods.jsonl lacks → (its records in the order of the candidates, how they were computed).

    A record is {"id", "choice", "context", "continuation", "reference", "logprob", "tokens", "bytes"}. facts: of the data, compared when a
    run continues. Raises UserError if the folder's lines were made in another way.
    """
    subject, kind = open_model(args)
    facts = model_facts(args, subject, facts["data"]) | facts | {"likelihood": kind, "batch_size": args.batch_size}
    config = facts | {"settings_hash": settings_hash(subject)}
    wanted = {(candidate.id, candidate.choice): candidate for candidate in candidates}
    if len(wanted) < len(candidates):
        raise UserError(f"{facts['data']}: an id stands for more than one item; give every item an id of its own")
    asked = list(wanted.values())
    grew = grown(
        folder,
        config,
        wanted,
        CHOICES,
        lambda known: _stream(args, subject, kind, asked, known),
        lambda number, result: _record(asked[number], result),
        afresh=args.overwrite,
    )
    facts |= {"resumed": grew.resumed, "processes": args.processes or args.data_parallel, "seconds": grew.seconds}
    return grew.records, facts


def _stream(args, subject: Subject, kind: str, candidates: Sequence[Candidate], known: Sequence[int]):
    pairs = [Pair(each.context, each.continuation, f"item {each.id}, {each.choice}") for each in candidates]
    if args.backend == "vllm":
        from ba_lora.inference.vllm_likelihoods import vllm_likelihoods

        return vllm_likelihoods(args, subject, pairs, known)
    from ba_lora.inference.likelihoods import likelihoods
    from ba_lora.inference.pseudo import pseudo_likelihoods

    compute = likelihoods if kind == CAUSAL else pseudo_likelihoods
    return compute(pairs, model=subject.model, tokenizer=subject.tokenizer, batch_size=args.batch_size, done=known)


def _record(candidate: Candidate, result: Likelihood) -> dict:
    """Return a line of likelihoods.jsonl."""
    return candidate._asdict() | result._asdict()
