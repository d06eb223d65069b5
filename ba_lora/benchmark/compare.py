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
from ..models import load_model
from . import report
from .cases import BASE, CONTESTANTS, SMALLEST_VOCABULARY, Case
from .measure import measure

GROWTH = (BASE, "floor", "ours", "cached")


def cases_of(args: argparse.Namespace) -> list[Case]:
    """One case per vocabulary. Raises UserError for a GPU that is not there."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU; use cpu")
    vocabularies = args.vocabulary or [32000]
    if args.model:
        vocabularies = [load_model(args.model, args.dtype).get_input_embeddings().num_embeddings]
    if min(vocabularies) < SMALLEST_VOCABULARY:
        raise UserError(
            f"--model {args.model} has a vocabulary of {vocabularies[0]}; at least {SMALLEST_VOCABULARY} is needed"
        )
    sizes = {
        field.name: getattr(args, field.name) for field in fields(Case) if field.name not in ("vocabulary", "svd_k")
    }
    sizes |= {"device": device, "threads": args.threads or torch.get_num_threads()}
    return [Case(vocabulary, **sizes) for vocabulary in vocabularies]


def growth_cases(case: Case) -> dict[str, Case]:
    """{label: case}: cases that vary one size at a time around `case`."""
    sizes = [case.vocabulary // 2, case.vocabulary, 2 * case.vocabulary]
    cases = {f"V = {size:,}": replace(case, vocabulary=size) for size in sizes}
    for part in (case.response / 2, case.response, min(2 * case.response, 1.0)):
        changed = replace(case, response=part)
        cases[f"N = {changed.rows:,}"] = changed
    return cases | {f"k = {k}": replace(case, svd_k=k) for k in (3, 10, 50)}


def compare(args: argparse.Namespace) -> None:
    """Measure every case; write and print the results after each. Raises UserError if a memory figure is missing."""
    transformers_logging.disable_progress_bar()
    cases = cases_of(args)
    names = [name for name in CONTESTANTS if name in {*(args.only or CONTESTANTS), BASE}]
    growing = growth_cases(cases[0]) if args.growth else {}
    one = args.repeats + 1 + (not args.no_memory)  # progress-bar steps per contestant
    total = one * (len(cases) * len(names) + len(set(growing.values())) * len(GROWTH))
    measured, grown = [], {}
    with tqdm(total=total, mininterval=0.5) as bar:
        for case in cases:
            measured.append((case, measure(case, names, args.repeats, not args.no_memory, bar)))
            with tqdm.external_write_mode():
                print(report.table(*measured[-1], args.repeats) + "\n", flush=True)
            write_results(Path(args.output), measured, grown, growing)  # the next case may run out of memory
        done = {}
        for label, case in growing.items():
            if case not in done:
                done[case] = measure(case, list(GROWTH), args.repeats, not args.no_memory, bar)
            grown[label] = done[case]
    if grown:
        print(report.growth_table(grown) + "\n")
        write_results(Path(args.output), measured, grown, growing)
    print(f"written: {args.output}/benchmark.json, {args.output}/benchmark.png")
    every = [*(results for _, results in measured), *grown.values()]
    failures = [result["failure"] for results in every for result in results.values() if "failure" in result]
    if failures:
        raise UserError(failures[0])


def write_results(folder: Path, measured: list[tuple[Case, dict]], grown: dict, growing: dict[str, Case]) -> None:
    """Write benchmark.json (bytes and seconds) and benchmark.png."""
    write_json(
        folder / "benchmark.json",
        {
            **provenance.record(),
            "base": BASE,
            "cases": [{"sizes": asdict(case), "results": results} for case, results in measured],
            "growth": {label: {"sizes": asdict(growing[label]), "results": grown[label]} for label in grown},
        },
    )
    report.draw(measured, folder / "benchmark.png")
