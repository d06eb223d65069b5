"""The answering models, and answers printed while they are generated.

An exported adapter is plain LoRA for the original base, so switching it off gives the base with only one model in memory. Only
full fine-tuning needs a separate base model.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from .. import signals
from ..data.instruction import decode_after, encode_prompt
from ..data.templates import end_id
from ..errors import UserError
from ..inference.subject import Subject, open_subject, trained_folder
from ..models import load_model

logger = logging.getLogger(__name__)


@dataclass
class Voice:
    """One of the answering models: its label, the model, the context to enter around it, and its own conversation."""

    label: str
    model: object
    around: Callable[[], AbstractContextManager] = nullcontext
    history: list[dict] = field(default_factory=list)


def voices_of(subject: Subject, args: argparse.Namespace) -> list[Voice]:
    """The models to ask, in order: base and tuned, or only the requested one. A model that nothing was trained from is alone."""
    if not trained_folder(args.model):
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
        subject = open_subject(args.model, template=args.template, dtype=args.dtype)
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
