"""An adapted model whose loss is the whole objective, computed from hidden states if its head allows it, else from logits."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from ..data.collator import counted, trained_rows
from ..errors import UserError
from ..methods.adalora import penalty
from ..objective.chunked import OBSERVED, TeacherStats, chunked_objective, mean_entropy, needs_factor
from ..objective.dense import dense_objective, divisor, observed
from ..objective.head import Split, cached_factor, split
from ..objective.regularizers import entropy
from ..objective.settings import REGULARIZERS, Objective
from ..objective.sketch import Sketch
from ..sharding import gathered
from .step_model import StepModel
from .taught import Taught, owners_of
from .teacher_rows import of_batch

logger = logging.getLogger(__name__)


class ObjectiveModel(StepModel):
    """A causal language model whose forward returns the objective; StepModel describes how it is driven.

    chunked: train from the hidden states if the head allows it, with the same value and gradients in less memory and time;
    the output then has no logits. False: always use the dense form. observe: keep in `observed` what a trainer reports of each
    micro-batch, in evaluation too, which is then chunked like training.
    """

    averaged = (*(each.name for each in REGULARIZERS if not each.per_row), "penalty")
    loss_type = "ForCausalLM"  # Trainer then counts labels[:, 1:], the rows that `counted` counts

    def __init__(
        self, student: nn.Module, objective: Objective, *, chunked: bool = True, observe: bool = False, **options: Any
    ):
        vocabulary = student.get_output_embeddings().weight.shape[0]
        if objective.top_k is not None and objective.top_k > vocabulary:
            raise UserError(f"top_k {objective.top_k} is above the vocabulary of {vocabulary}; lower top_k")
        super().__init__(student, objective, **options)
        self.vocabulary = vocabulary
        self.observe = observe
        self.observed: dict[
            str, Tensor
        ] = {}  # of the last micro-batch: rows, sums of entropy and accuracy, and its terms
        self.may_split = chunked  # until the first step finds that the head does not allow it
        self.parts: Split | None = None
        self.factor: Tensor | None = None  # factor of the head, for the spectrum

    def items(self, labels: Tensor) -> Tensor:
        """The number of trained tokens. labels: (B, T)."""
        return counted(labels).sum()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> ModelOutput:
        """Like the student's forward, with the objective as `loss`. input_ids, attention_mask, labels: (B, T).

        Among `inputs` may be the teacher's contribution to the N trained rows from a cache, in the order in which `counted`
        selects them; training then runs no teacher. Raises UserError if the teacher's logits are needed anyway.
        """
        stats = of_batch(inputs, self.vocabulary)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        if labels is None:
            return self.student(**inputs)
        inputs["use_cache"] = False
        rows = trained_rows(labels)
        if (self.training or self.observe) and not self.keep_gradients and self._can_split(input_ids):
            output, terms, weights = self._chunked(inputs, labels, rows, num_items_in_batch, stats)
        elif self.training and (
            isinstance(stats, TeacherStats) or (stats is not None and self.objective.consistency != "kl")
        ):
            raise UserError(
                "the teacher cache holds no logits, which training this model needs (its head is adapted, trained or not "
                "linear, or each term's gradient is kept, or consistency is not KL); leave the cache out"
            )
        else:
            stats = stats if self.training else None
            output, terms, weights = self._dense(inputs, labels, rows, num_items_in_batch, stats)
        if self.observe:
            self._keep_observed(terms, len(rows), num_items_in_batch)
        if self.training:
            extra = penalty(self.student)
            if extra is not None:
                terms["penalty"], output.loss = extra, output.loss + extra * self.share
            self.rows = self.rows + self.items(labels)
            self.record(terms, output.loss, weights)
        return output

    def _keep_observed(self, terms: dict, rows: int, num_items) -> None:
        """Take entropy and accuracy out of `terms`, as sums over the micro-batch's rows."""
        items = divisor(num_items, rows)
        self.observed = {name: terms.pop(name) * items for name in OBSERVED}
        self.observed |= {name: term.detach() for name, term in terms.items() if term is not None}
        self.observed["rows"] = torch.as_tensor(rows, device=terms["task"].device)

    def measure(self, input_ids=None, labels=None, **inputs) -> tuple[dict[str, Tensor | None], int]:
        """See StepModel; the items are the trained tokens. input_ids, labels: (B, T)."""
        inputs, rows = {"input_ids": input_ids, "use_cache": False, **inputs}, trained_rows(labels)
        compute = self._chunked if self._can_split(input_ids) else self._dense
        _, terms, _ = compute(inputs, labels, rows, 1, None)  # divided by one item: sums
        return terms, len(rows)

    def _can_split(self, input_ids: Tensor) -> bool:
        """Return True if the objective can be computed without logits. Determined once; logs the reason once if it cannot."""
        if self.may_split and self.parts is None:
            self.parts, reason = split(self.student, input_ids[:1, :2], self.objective)
            if self.parts is None:
                logger.warning("the logits are kept, at the cost of memory and time: %s", reason)
                self.may_split = False
        return self.parts is not None

    def _teach(self, run: Callable[..., Tensor], inputs: dict, labels: Tensor, rows: Tensor) -> Taught:
        """`teach` for the trained rows. run(**inputs) → (B, T, …)."""
        return self.teach(
            lambda of, **inputs: _select(run(**inputs), rows if of is labels else trained_rows(of)),
            inputs,
            labels,
            lambda: owners_of(inputs, labels, rows),
        )

    def _dense(self, inputs: dict, labels: Tensor, rows: Tensor, num_items, stats: Sketch | None) -> tuple:
        """(output, terms, weights) from the student's and teacher's logits, (N, V) each. With `stats` no teacher runs."""
        targets, taught = _targets(labels, rows), Taught()
        stats = stats if self.needs_teacher() else None
        if stats is None:
            taught = self._teach(lambda **inputs: self.student(**inputs).logits, inputs, labels, rows)
        output = self.student(**inputs)
        logits, weights = _select(output.logits, rows), self.lambdas
        teacher_logits = taught.beside(logits) if stats is None else stats
        if self.needs_teacher() and len(targets):

            def teacher_entropy() -> Tensor:
                return (stats.entropy if stats else entropy(teacher_logits, self.objective.temperature)).mean()

            weights = self.weights(teacher_entropy, self.vocabulary)
        output.loss, terms = dense_objective(
            logits,
            teacher_logits,
            targets,
            self.objective,
            weights,
            num_items=num_items,
            spectrum_scale=self.share if self.training else 1.0,
            all_terms=self.all_terms,
            **taught.options(),
        )
        if self.observe:
            terms |= observed(logits, targets, num_items)
        return output, terms, weights

    def _chunked(
        self, inputs: dict, labels: Tensor, rows: Tensor, num_items, stats: TeacherStats | Sketch | None
    ) -> tuple:
        """As `_dense`, from the hidden states, (N, d) each; the output has no logits. With `stats` no teacher runs."""
        body, head = self.parts
        if self.factor is None and needs_factor(self.objective.maxima(), self.all_terms):
            with gathered(
                head.parameters()
            ):  # before the first step: it takes memory, of which activations leave little
                self.factor = cached_factor(head)
        stats = stats if self.needs_teacher() else None
        taught = Taught()
        if stats is None:
            taught = self._teach(lambda **inputs: body(**inputs).last_hidden_state, inputs, labels, rows)
        hidden = _select(body(**inputs).last_hidden_state, rows)

        with gathered(head.parameters()):
            loss, terms, weights = self._from_hidden(hidden, taught, stats, head, _targets(labels, rows), num_items)
        return CausalLMOutput(loss=loss), terms, weights

    def _from_hidden(self, hidden, taught: Taught, stats, head: nn.Linear, targets: Tensor, num_items) -> tuple:
        """(loss, terms, weights) of the rows. hidden: (N, d); `head` holds its values."""
        teacher_hidden = taught.beside(hidden)

        def teacher_entropy() -> Tensor:
            if stats is not None:
                return stats.entropy.mean()
            return mean_entropy(teacher_hidden, head.weight, self.objective.temperature)

        weights = self.lambdas
        if self.needs_teacher() and len(targets):
            weights = self.weights(teacher_entropy, len(head.weight))
        loss, terms = chunked_objective(
            hidden,
            teacher_hidden,
            head.weight,
            targets,
            self.objective,
            weights,
            head_factor=self.factor,
            teacher_stats=stats,
            num_items=num_items,
            spectrum_scale=self.share if self.training else 1.0,
            all_terms=self.all_terms,
            observe=self.observe,
            **taught.options(),
        )
        return loss, terms, weights


def _targets(labels: Tensor, rows: Tensor) -> Tensor:
    """(N,): the token that each row predicts."""
    return labels.flatten()[rows + 1]


def _select(values: Tensor, rows: Tensor) -> Tensor:
    """(N, d): the rows of values (B, T, d) with these numbers in the flattened batch."""
    return values.flatten(0, 1).index_select(0, rows)
