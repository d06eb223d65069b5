"""The whole comparison: its cases are measured one after the other, and its tables and files are written."""

import argparse
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from .. import provenance
from ..errors import UserError
from ..files import write_json
from ..machine.devices import gpus
from ..models import load_model
from ..training.model_numbers import suited
from . import report
from .bodies import body_config
from .cases import BASE, CONTESTANTS, OF_A_BODY, SMALLEST_VOCABULARY, Case, is_here
from .measure import Measured, measure, measure_in_place
from .predicted import planned

GROWTH = (BASE, "floor", "ours", "cached")


def cases_of(args: argparse.Namespace) -> list[Case]:
    """One case per vocabulary or body. Raises UserError for a body other than a decoder, and for too small a vocabulary."""
    shared = {field.name for field in fields(Case)} - {"vocabulary", "svd_k", "body", "rank"}
    options = {name: getattr(args, name) for name in shared}
    options["device"] = args.device or ("cuda" if gpus() else "cpu")
    options["threads"] = args.threads or torch.get_num_threads()
    if args.body:
        sizes = {name: body_config(name).vocab_size for name in args.body}
        ranks = {name: args.rank or suited(name, is_classifier=False)[0] for name in args.body}
        return [Case(sizes[name], body=name, rank=ranks[name], **options) for name in args.body]
    vocabularies = args.vocabulary or [32000]
    if args.model:
        vocabularies = [load_model(args.model, args.dtype).get_input_embeddings().num_embeddings]
    if min(vocabularies) < SMALLEST_VOCABULARY:
        raise UserError(
            f"--model {args.model} has a vocabulary of {vocabularies[0]}; at least {SMALLEST_VOCABULARY} is needed"
        )
    return [Case(vocabulary, rank=args.rank, **options) for vocabulary in vocabularies]


def names_of(args: argparse.Namespace) -> list[str]:
    """The contestants to measure: those that are asked for, or all whose package is installed, with BASE."""
    chosen = set(args.only or filter(is_here, OF_A_BODY if args.body else CONTESTANTS))
    return [name for name in CONTESTANTS if name in chosen | {BASE}]


def growth_cases(case: Case) -> dict[str, Case]:
    """{label: case}: cases that vary one size at a time around `case`."""
    sizes = [case.vocabulary // 2, case.vocabulary, 2 * case.vocabulary]
    cases = {f"V = {size:,}": replace(case, vocabulary=size) for size in sizes}
    for part in (case.response / 2, case.response, min(2 * case.response, 1.0)):
        changed = replace(case, response=part)
        cases[f"N = {changed.rows:,}"] = changed
    return cases | {f"k = {k}": replace(case, svd_k=k) for k in (3, 10, 50)}


def compare(args: argparse.Namespace) -> None:
    """Measure every case; write and print the results after each. Raises UserError if a figure is missing."""
    transformers_logging.disable_progress_bar()
    cases, names = cases_of(args), names_of(args)
    growing = growth_cases(cases[0]) if args.growth else {}
    one = 1 if args.body else args.repeats + 1 + (not args.no_memory)  # progress-bar steps per contestant
    total = one * (len(cases) * len(names) + len(set(growing.values())) * len(GROWTH))
    measured, grown = [], {}
    with tqdm(total=total, mininterval=0.5) as bar:
        for case in cases:
            if args.body:
                measured.append(Measured(case, *measure_in_place(case, names, args.repeats, bar)))
            else:
                measured.append(Measured(case, measure(case, names, args.repeats, not args.no_memory, bar)))
            with tqdm.external_write_mode():
                print(report.table(*measured[-1][:2], args.repeats, measured[-1].start_seconds) + "\n", flush=True)
            write_results(Path(args.output), measured, grown, growing)  # the next case may run out of memory
        done = {}
        for label, case in growing.items():
            if case not in done:
                done[case] = measure(case, list(GROWTH), args.repeats, not args.no_memory, bar)
            grown[label] = done[case]
    if grown:
        print(report.growth_table(grown) + "\n")
        write_results(Path(args.output), measured, grown, growing)
    picture = (
        f", {args.output}/benchmark.png" if report.CAN_DRAW else "; no picture, because matplotlib is not installed"
    )
    print(f"written: {args.output}/benchmark.json{picture}")
    every = [*(each.results for each in measured), *grown.values()]
    failures = [result["failure"] for results in every for result in results.values() if "failure" in result]
    if failures:
        raise UserError(failures[0])


def write_results(folder: Path, measured: list[Measured], grown: dict, growing: dict[str, Case]) -> None:
    """Write benchmark.json (bytes and seconds) and benchmark.png."""
    write_json(
        folder / "benchmark.json",
        {
            **provenance.record(),
            "base": BASE,
            "cases": [
                {"sizes": asdict(case), "start_seconds": start, "planned": planned(case), "results": results}
                for case, results, start in measured
            ],
            "growth": {label: {"sizes": asdict(growing[label]), "results": grown[label]} for label in grown},
        },
    )
    if report.CAN_DRAW:
        report.draw(measured, folder / "benchmark.png")
