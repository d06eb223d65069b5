"""The work of the benchmark: one synthetic micro-batch on one adapted model, and every way to compute a loss from it.

All contestants train the same adapter on the same rows from the same values, so their times differ only by the loss.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ..data.collator import counted
from ..errors import UserError
from ..methods.attach import attach
from ..methods.teacher import teacher
from ..models import DTYPES, load_model
from ..objective.chunked import factor_of, stats_of
from ..objective.head import split
from ..objective.settings import REGULARIZERS, WEIGHTS, Objective
from ..training.objective_model import ObjectiveModel
from .cases import Case
from .published import published_loss

CONSTANT = {each.schedule: "constant" for each in REGULARIZERS}  # every term at full weight from the first step


class Work:
    """The micro-batch, the adapted model and its optimiser; `step` is one optimiser step with any of `PREPARE`."""

    def __init__(self, case: Case, *, second_model: bool = False):
        torch.set_num_threads(case.threads)
        torch.manual_seed(0)
        base = load_model(case.model, case.dtype) if case.model else random_llama(case)
        base = base.to(case.device)
        if case.length > base.config.max_position_embeddings:
            raise UserError(
                f"--length {case.length} is above the model's {base.config.max_position_embeddings} positions"
            )
        self.second_model = copy.deepcopy(base).requires_grad_(False) if second_model else None
        # the randomised start: sufficient here, and minutes faster on a real model
        self.student = attach(base, "ba-lora", rank=case.rank, alpha=case.rank, init="pissa_niter_4").train()
        self.batch = synthetic_batch(case, base.get_input_embeddings().num_embeddings)
        changes = CONSTANT if case.svd_k is None else CONSTANT | {"svd_k": case.svd_k}
        self.objective = Objective.preset(case.preset, **changes)
        self.trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        with torch.no_grad():  # move away from the teacher, as in the middle of a training
            for parameter in self.trained:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.05)
        self.start = [parameter.detach().clone() for parameter in self.trained]
        self.optimiser = torch.optim.AdamW(self.trained, lr=1e-4)

    @cached_property
    def factor(self) -> Tensor:
        """The factor of the head: computed once per model, so not part of a step."""
        return factor_of(self.student.get_output_embeddings().weight)

    @torch.no_grad()
    def rewind(self) -> None:
        """Reset the trained tensors to their start, so that every step does the same work."""
        for parameter, value in zip(self.trained, self.start, strict=True):
            parameter.copy_(value)

    def step(self, loss_of: Callable[[], Tensor]) -> Tensor:
        """Run forward, backward and optimiser; return the loss."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        self.optimiser.step()
        return loss.detach()


def random_llama(case: Case) -> LlamaForCausalLM:
    """An untrained model with the sizes of `case` and heads of 64 numbers. Raises UserError for a width without such heads."""
    heads = max(case.hidden // 64, 1)
    if case.hidden % (2 * heads):
        raise UserError(f"--hidden {case.hidden} must be a multiple of 64, or an even number below 128")
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        intermediate_size=16 * round(case.hidden / 6),  # about 8/3 of the width, as in Llama
        num_hidden_layers=case.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=case.length,
        tie_word_embeddings=False,
        initializer_range=1.5 * case.hidden**-0.5,  # spreads the logits like those of a trained model
        dtype=DTYPES[case.dtype],
    )
    return LlamaForCausalLM(config).to(DTYPES[case.dtype])


def synthetic_batch(case: Case, vocabulary: int) -> dict[str, Tensor]:
    """input_ids, attention_mask, labels (B, T): random tokens without padding, the last part of each sample trained."""
    ids = torch.randint(0, vocabulary, (case.batch, case.length), device=case.device)
    labels = ids.clone()
    labels[:, : case.length - case.rows // case.batch] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _stock(work: Work) -> Callable[[], Tensor]:
    return lambda: work.student(**work.batch, use_cache=False).loss  # Trainer sets use_cache to False as well


def _published(work: Work) -> Callable[[], Tensor]:
    lambdas = work.objective.weights(0, 1)
    return lambda: published_loss(work.student, work.second_model, work.objective, lambdas, **work.batch)[0]


def _objective_model(work: Work, kept: tuple[str, ...] = WEIGHTS, chunked: bool = True) -> ObjectiveModel:
    """Our objective with the weights named in `kept`; the other weights are 0."""
    objective = replace(work.objective, **{weight: 0.0 for weight in WEIGHTS if weight not in kept})
    model = ObjectiveModel(work.student, objective, chunked=chunked).train()
    model.factor = work.factor if "lambda3" in kept and chunked else None
    return model


def _ours(*kept: str, chunked: bool = True) -> Callable[[Work], Callable[[], Tensor]]:
    def prepare(work: Work) -> Callable[[], Tensor]:
        model = _objective_model(work, kept, chunked)
        return lambda: model(**work.batch).loss

    return prepare


def _cached(work: Work) -> Callable[[], Tensor]:
    """Our objective with the teacher's contribution to each row computed beforehand."""
    model = _objective_model(work)
    parts, reason = split(work.student, work.batch["input_ids"][:1, :2])
    if parts is None:
        raise UserError(f"'cached' needs the chunked objective, and {reason}; leave it out with --only")
    with teacher(work.student):
        hidden = parts.body(work.batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        stats = stats_of(hidden[counted(work.batch["labels"])], parts.head.weight, work.objective.temperature)
    return lambda: model(**work.batch, teacher_u=stats.u, teacher_c=stats.c).loss


PREPARE = {  # contestant → a function that turns the work into one that gives the loss
    "pissa": _stock,
    "published": _published,
    "dense-bare": _ours(chunked=False),
    "dense": _ours(*WEIGHTS, chunked=False),
    "floor": _ours(),
    **{each.name: _ours(each.weight) for each in REGULARIZERS},
    "ours": _ours(*WEIGHTS),
    "cached": _cached,
}
