"""The `transformers` backend: completions with a model that is open in this process, or in several (`copies`).

A completion depends only on the model, its prompt and its seed, not on the batch, the order or an interruption. On a GPU this holds up
to the rounding of its kernels, which depends on the shape of a batch: two nearly equal logits may then change places.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, StoppingCriteriaList

from ..data.templates import end_id
from ..errors import UserError
from ..modes import evaluating
from .completions import Completion, cut_at, end_ids, finish, room
from .copies import Copies
from .memory import Limit
from .requests import Job, Sampling

# New tokens before finished rows leave the batch, so that one row that never ends costs its batch little. Long prompts take more,
# because every round reads them again.
ROUND_TOKENS, ROUND_SHARE = 64, 1 / 4
TAIL = 32  # tokens at the end in which stop strings are searched for during generation


def complete(args, subject, jobs: Sequence[Job], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
    """A backend; see `backends.get_backend`."""
    prompts = [job.ids for job in jobs]
    options = {
        "max_new_tokens": args.max_new_tokens,
        "batch_size": args.batch_size,
        "end": end_id(subject.tokenizer, subject.template),
        "sampling": sampling,
        "seeds": [job.seed for job in jobs],
    }
    if isinstance(subject.model, Copies):
        return subject.model.stream(prompts, **options)
    return stream(prompts, model=subject.model, tokenizer=subject.tokenizer, **options)


def generate(prompts: Sequence[Sequence[int]], *, progress: bool = True, **options) -> list[Completion]:
    """Completions of `prompts` (token ids), in their order, with transformers; for the options see `stream`."""
    found = stream(prompts, **options)
    shown = tqdm(found, total=len(prompts), desc="generate", unit="prompt", disable=None if progress else True)
    by_number = dict(shown)
    return [by_number[number] for number in range(len(prompts))]


def stream(
    prompts: Sequence[Sequence[int]],
    *,
    model,
    tokenizer,
    max_new_tokens: int,
    batch_size: int = 64,
    end: int | None = None,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[tuple[int, Completion]]:
    """(number of a prompt, its completion), as they end, with transformers; greedy unless `sampling` has a temperature.

    Prompts are sorted by length and padded on the left. Generation runs in rounds: after some new tokens, finished rows leave and
    the rest is batched anew, so a single long row does not delay its whole batch. A batch has at most `batch_size` rows, and no more than
    the free memory holds keys and values of; if memory runs out all the same, it is halved. A completion ends at the token `end`
    (default: the tokenizer's end of sequence), the one that training ends a response with, regardless of the model's own
    generation_config; that token is counted but not part of the text. It also ends at a stop string of `sampling`. `seeds`: one
    per prompt, for sampling.

    Raises UserError if the tokenizer has no end-of-sequence token, or a prompt fills the model's positions.
    """
    sampling = sampling or Sampling()
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise UserError("the tokenizer has no end-of-sequence token, so no completion can end; set tokenizer.eos_token")
    positions = getattr(model.config, "max_position_embeddings", None)
    rooms = [room(prompt, max_new_tokens, positions) for prompt in prompts]
    ends = end_ids(tokenizer, end, sampling.stop)
    chances = [random.Random(seed) for seed in seeds or range(len(prompts))] if sampling.temperature else None
    return _rounds(prompts, rooms, model, tokenizer, batch_size, ends, sampling, chances)


def _rounds(prompts, rooms, model, tokenizer, batch_size, ends, sampling, chances) -> Iterator[tuple[int, Completion]]:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    written: list[list[int]] = [[] for _ in prompts]
    pending = list(range(len(prompts)))
    limit = Limit(model, batch_size)

    def length(row: int) -> int:
        return len(prompts[row]) + len(written[row])

    def extend(rows: list[int]) -> list[list[int]] | None:
        """The next tokens of the rows of a batch; None if the memory is too small for it."""
        inputs = [[*prompts[row], *written[row]] for row in rows]
        steps = min(_steps(length(rows[0])), *(rooms[row] - len(written[row]) for row in rows))
        before = [chances[row].getstate() for row in rows] if chances else ()
        draw = _Draw(sampling, [chances[row] for row in rows]) if chances else None
        stopped = _Stopped(tokenizer, sampling.stop, length(rows[0])) if sampling.stop else None
        try:
            return _extend(model, inputs, steps, ends, pad, draw, stopped)
        except torch.OutOfMemoryError:
            for row, state in zip(rows, before, strict=False):  # to draw the same numbers again
                chances[row].setstate(state)
            return None

    with _plain_config(model, ends, pad):
        while pending:
            remaining = []
            # longest first: a batch that is too large then fails at once, not at the end
            pending.sort(key=length, reverse=True)
            while pending:
                width = length(pending[0]) + _steps(length(pending[0]))
                rows = pending[: limit.rows(width)]
                found = extend(rows)
                if found is None:
                    limit.halve(len(rows), width)
                    continue
                del pending[: len(rows)]
                for row, tokens in zip(rows, found, strict=True):
                    written[row] += tokens
                    completion = finish(tokenizer, prompts[row], written[row], ends, sampling.stop)
                    if completion.finish_reason == "stop" or len(written[row]) >= rooms[row]:
                        yield row, completion
                    else:
                        remaining.append(row)
            pending = remaining


def _steps(length: int) -> int:
    """The new tokens of a round whose longest row has `length` tokens."""
    return max(ROUND_TOKENS, int(ROUND_SHARE * length))


@torch.inference_mode()
def _extend(
    model, inputs: list[list[int]], steps: int, ends: Sequence[int], pad: int, draw, stopped
) -> list[list[int]]:
    """The next `steps` tokens of each row, or fewer if it ends with one of `ends` or with the end of a stop string."""
    width = max(map(len, inputs))
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in inputs], device=device)  # (B, T)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in inputs], device=device)  # (B, T)
    options = {"logits_processor": [draw]} if draw else {}
    options |= {"stopping_criteria": StoppingCriteriaList([stopped])} if stopped else {}
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=steps, **options)
    rows = output[:, width:].tolist()
    rows = [row[: stopped.after.get(number)] for number, row in enumerate(rows)] if stopped else rows
    firsts = (next((place for place, token in enumerate(row, 1) if token in ends), len(row)) for row in rows)
    return [row[:first] for row, first in zip(rows, firsts, strict=True)]


class _Stopped(StoppingCriteria):
    """Ends a row when its new tokens hold a stop string. `after`: row → its new tokens up to there; the rest that generate adds
    is padding. `finish` decides: a row that ended here without a reason continues in the next round."""

    def __init__(self, tokenizer, stop: Sequence[str], width: int):
        self.tokenizer, self.stop, self.width = tokenizer, stop, width
        self.after: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        for row, tokens in enumerate(input_ids[:, self.width :].tolist()):
            if row not in self.after:
                text = self.tokenizer.decode(tokens[-TAIL:], skip_special_tokens=True)
                if cut_at(text, self.stop) is not None:
                    self.after[row] = len(tokens)
        return torch.tensor([row in self.after for row in range(len(input_ids))], device=input_ids.device)


class _Draw(LogitsProcessor):
    """Leave each row only the token that it draws with one number of its own generator: sampling inside greedy decoding.

    generate's own sampling draws from one generator for the whole batch, so a completion would depend on the other rows.
    """

    def __init__(self, sampling: Sampling, chances: list[random.Random]):
        self.sampling, self.chances = sampling, chances

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chances = torch.softmax(scores.double() / self.sampling.temperature, dim=-1)  # (B, V)
        chances, tokens = chances.sort(dim=-1, descending=True, stable=True)
        kept = chances.cumsum(-1) - chances < self.sampling.top_p  # the mass of the likelier tokens is below top_p
        mass = (chances * kept).cumsum(-1)
        drawn = torch.tensor([[chance.random()] for chance in self.chances], dtype=mass.dtype, device=mass.device)
        place = torch.searchsorted(mass, drawn * mass[:, -1:], right=True)  # (B, 1)
        place = torch.minimum(place, kept.sum(-1, keepdim=True) - 1)  # if rounding made `drawn` the whole mass
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens.gather(-1, place), 0.0)


@contextmanager
def _plain_config(model, ends: Sequence[int], pad: int):
    """Give the model (and, under an adapter, the models inside) a plain greedy generation config; restore the originals afterwards.

    `generate` completes a config that is passed to it from the model's own, including the repetition penalty; replacing the
    model's own config makes decoding greedy for every checkpoint. The model is in evaluation mode meanwhile.
    """
    plain = GenerationConfig(do_sample=False, num_beams=1, use_cache=True, eos_token_id=list(ends), pad_token_id=pad)
    owners = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [module.generation_config for module in owners]
    try:
        for module in owners:
            module.generation_config = plain
        with evaluating(model):
            yield
    finally:
        for module, config in zip(owners, before, strict=True):
            module.generation_config = config
