"""Type a prompt and see the answers of the base model and the tuned model, one after the other.

An exported adapter is plain LoRA for the original base, so switching it off gives the base with only one model in memory. Only
full fine-tuning needs a separate base model.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from . import signals
from .data.instruction import decode_after, encode_prompt
from .data.templates import end_id
from .errors import UserError, run_cli
from .inference.subject import Subject, open_subject
from .methods.save import find_run
from .models import load_model

logger = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  python -m ba_lora.chat --run runs/v5
  python -m ba_lora.chat --run runs/v5 --only tuned --multi_turn --temperature 0.7
  python -m ba_lora.chat --run runs/v5 --prompt "Ann has 3 apples and buys 4 more. How many has she now?"
  python -m ba_lora.chat --model tiny < prompts.txt       (one prompt per line)

While it runs, Ctrl-C stops an answer and Ctrl-D ends; /reset clears the conversation, /help shows this, /exit ends."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the options. Raises UserError for options that contradict each other, before anything is loaded."""
    parser = argparse.ArgumentParser(
        prog="python -m ba_lora.chat",
        description="See the answers of a base model and of the model tuned from it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", metavar="DIR", help="run folder with the tuned model and the name of its base")
    add("--only", choices=("base", "tuned"), help="show only one of the run's two models (default: both)")
    add("--model", metavar="NAME", help="instead of --run: 'tiny', a model folder, a hub id, or package:NAME")
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
    if bool(args.run) == bool(args.model):
        raise UserError("give either --run DIR for a tuned model and its base, or --model NAME for a single model")
    if args.only and not args.run:
        raise UserError(f"--only {args.only} chooses between the models of --run; leave it out with --model")
    if not args.temperature >= 0:
        raise UserError(f"--temperature must be at least 0, got {args.temperature:g}")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top_p must be above 0 and at most 1, got {args.top_p:g}")
    if args.top_p < 1 and not args.temperature:
        raise UserError(f"--top_p {args.top_p:g} has no effect without sampling; add --temperature 1")
    if args.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens must be at least 1, got {args.max_new_tokens}")
    return args


@dataclass
class Voice:
    """One of the answering models: its label, the model, the context to enter around it, and its own conversation."""

    label: str
    model: object
    around: Callable[[], AbstractContextManager] = nullcontext
    history: list[dict] = field(default_factory=list)


def voices_of(subject: Subject, args: argparse.Namespace) -> list[Voice]:
    """The models to ask, in order: base and tuned, or only the requested one."""
    if not args.run:
        return [Voice(args.model, subject.model)]
    tuned, label = Voice("tuned", subject.model), f"base ({subject.base})"
    if args.only == "tuned":
        return [tuned]
    if hasattr(subject.model, "disable_adapter"):
        base = Voice(label, subject.model, subject.model.disable_adapter)
    else:
        logger.warning("this run's weights cannot be switched off; its base %s is loaded as well", subject.base)
        base = Voice(label, load_model(subject.base, args.dtype).to(subject.model.device))
    return [base] if args.only == "base" else [base, tuned]


class Stream(BaseStreamer):
    """Print an answer while `generate` makes it. `text()` is the answer without leading blanks and without the end token."""

    def __init__(self, tokenizer, prompt: list[int], end: int):
        self.tokenizer, self.prompt, self.last = tokenizer, prompt, end
        self.ids, self.shown = None, ""

    def put(self, value: torch.Tensor) -> None:
        if self.ids is None:  # the first call delivers the prompt
            self.ids = []
            return
        self.ids += [token for token in value.flatten().tolist() if token != self.last]
        self._show(self.text().rstrip("\ufffd"))  # half a character is shown once it is complete

    def end(self) -> None:
        self._show(self.text() + "\n")

    def text(self) -> str:
        return decode_after(self.tokenizer, self.prompt, self.ids or [], skip_special_tokens=True).lstrip()

    def _show(self, text: str) -> None:
        print(text[len(self.shown) :], end="", flush=True)
        self.shown = text


class Chat:
    """The voices and how they answer. Raises UserError if something cannot be opened."""

    def __init__(self, args: argparse.Namespace):
        if args.run and find_run(args.run)[1] is None:
            raise UserError(f"--run {args.run} holds a model that names no base to compare it with; give it as --model")
        subject = open_subject(args.run or args.model, template=args.template, dtype=args.dtype)
        self.tokenizer, self.template, self.args = subject.tokenizer, subject.template, args
        self.end, self.voices = end_id(self.tokenizer, self.template), voices_of(subject, args)
        how = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": 0}
        how = how if args.temperature else {"do_sample": False}
        plain = GenerationConfig(eos_token_id=self.end, pad_token_id=self.end, **how)
        # `generate` completes a config that is passed to it from the model's own, so the model's own is replaced.
        for module in (module for voice in self.voices for module in voice.model.modules()):
            if "generation_config" in vars(module):
                module.generation_config = plain
        torch.manual_seed(args.seed)

    def ask(self, prompt: str) -> None:
        """Print every voice's answer. Raises UserError if the prompt leaves no space for one."""
        for voice in self.voices:
            print(f"--- {voice.label}", flush=True)
            messages = [*voice.history, {"role": "user", "content": prompt}]
            answer = self._answer(voice, messages)
            if self.args.multi_turn:
                voice.history = [*messages, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        """Clear the conversation."""
        for voice in self.voices:
            voice.history = []

    @torch.inference_mode()
    def _answer(self, voice: Voice, messages: list[dict]) -> str:
        ids = encode_prompt(self.tokenizer, self.template, messages)
        positions = getattr(voice.model.config, "max_position_embeddings", None) or sys.maxsize
        room = min(self.args.max_new_tokens, positions - len(ids))
        if room < 1:
            raise UserError(
                f"{len(ids)} tokens fill the {positions} positions of the model; ask for less, or /reset first"
            )
        stream = Stream(self.tokenizer, ids, self.end)
        inputs = torch.tensor([ids], device=voice.model.device)  # (1, T)
        mask = torch.ones_like(inputs)
        with voice.around():
            try:
                voice.model.generate(input_ids=inputs, attention_mask=mask, max_new_tokens=room, streamer=stream)
            except KeyboardInterrupt:  # if it left PEFT's block, the adapter would stay off
                stream.end()
                print("(stopped)")
        signals.check()  # at the keyboard Ctrl-C only stops the answer; otherwise it ends the command
        return stream.text()


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


def converse(chat: Chat, interactive: bool) -> None:
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
