"""python -m ba_lora.chat: the options, and the lines typed or piped in."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from ..data.templates import check_template
from ..errors import Parser, UserError, choose, run_cli
from ..folders.places import check_trained
from ..inference.subject import trained_folder
from ..methods.names import PRECISIONS
from ..packages import check_name

if TYPE_CHECKING:  # the libraries take seconds to import; --help and refusals do without them
    from .voices import Chat

EXAMPLES = """\
examples:
  python -m ba_lora.chat --model runs/v5
  python -m ba_lora.chat --model runs/v5 --only tuned --multi_turn --temperature 0.7
  python -m ba_lora.chat --model runs/v5 --prompt "Ann has 3 apples and buys 4 more. How many has she now?"
  python -m ba_lora.chat --model tiny < prompts.txt       (one prompt per line)

While it runs, Ctrl-C stops an answer and Ctrl-D ends; /reset clears the conversation, /help shows this, /exit ends."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the options. Raises UserError for what is known to be wrong before anything is loaded."""
    parser = Parser(
        prog="python -m ba_lora.chat",
        description="See the answers of a base model and of the model tuned from it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        *("--model", "--run"),
        metavar="NAME",
        help="run folder or adapter folder, which names its base; or one model: 'tiny', a model folder, a hub id, package:NAME",
    )
    add("--only", choices=("base", "tuned"), help="show only one of a run's two models (default: both)")
    add("--template", help="prompt template (default: the run's own; tiny: plain; else alpaca)")
    add("--prompt", metavar="TEXT", help="answer this and exit (default: one prompt per line, typed or piped in)")
    add("--multi_turn", action="store_true", help="keep a separate conversation for each model (default: keep none)")
    add("--temperature", type=float, default=0.0, help="sampling temperature; 0 takes the likeliest token (default: 0)")
    add("--top_p", type=float, default=1.0, help="sample from the likeliest tokens up to this mass (default: 1)")
    add("--seed", type=int, default=0, help="sampling seed (default: 0)")
    add("--max_new_tokens", type=int, default=512, help="maximum tokens per answer (default: 512)")
    add("--dtype", default="float32", help="float32, bfloat16, float16, or auto: as saved (default: float32)")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(words)
    _check_names(args)
    if not args.temperature >= 0:
        raise UserError(f"--temperature must be at least 0, got {args.temperature:g}")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top_p must be above 0 and at most 1, got {args.top_p:g}")
    if args.top_p < 1 and not args.temperature:
        raise UserError(f"--top_p {args.top_p:g} has no effect without sampling; add --temperature 1")
    if args.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens must be at least 1, got {args.max_new_tokens}")
    return args


def _check_names(args: argparse.Namespace) -> None:
    """Raise UserError for a model, template or precision that cannot be opened."""
    if not args.model:
        raise UserError("--model is missing; name a run folder to compare with its base, or a single model")
    if args.model != "tiny" and not check_name(args.model):
        check_trained(args.model, "--model")
    if args.only and not trained_folder(args.model):
        raise UserError(
            f"--only {args.only} chooses between a run and its base; leave it out with --model {args.model}"
        )
    if args.template:
        check_template(args.template)
    choose("--dtype", args.dtype, PRECISIONS)


def lines(interactive: bool) -> Iterator[str]:
    """The lines typed or piped in, until the end or /exit; Ctrl-C at the keyboard only begins a new line."""
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n(Ctrl-D or /exit ends)")
            continue
        if not interactive:
            print(line)
        if line == "/exit":
            return
        if line:
            yield line


def converse(chat: "Chat", interactive: bool) -> None:
    """Answer line by line. A failed prompt ends piped input; at the keyboard only that prompt fails."""
    for line in lines(interactive):
        try:
            if line == "/reset":
                chat.reset()
            elif line == "/help":
                print(EXAMPLES)
            elif line.startswith("/"):
                raise UserError(f"'{line}' is not a command; the commands are /reset, /help and /exit")
            else:
                chat.ask(line)
        except UserError as error:
            if not interactive:
                raise
            print(f"error: {error}")


def main(words: list[str] | None = None) -> None:
    """Open the models, then answer --prompt or the lines typed or piped in."""
    args = parse(words)
    from .voices import Chat

    chat = Chat(args)
    if args.prompt is not None:
        chat.ask(args.prompt)
        return
    if sys.stdin.isatty() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(ImportError):  # missing on some systems; makes the arrow keys work
        import readline  # noqa: F401
    converse(chat, sys.stdin.isatty())


if __name__ == "__main__":
    run_cli(main)
