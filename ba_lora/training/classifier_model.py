"""The objective of a classifier: one row per sample; the teacher's head is a copy of the student's initial head.

Task and consistency are sums over the samples divided by the number of samples in the whole optimiser step. Diversity and
spectrum are statistics of a micro-batch, averaged over the micro-batches and processes of the step, so they depend on how the
batch is split. With few classes some terms have no effect (`powerless` says which). These are still computed and logged, with
the norm of their gradient, which is 0.
"""

import logging

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from ..data.padding import last_real
from ..errors import UserError
from ..methods.adalora import penalty
from ..models.labels import output_layer
from ..objective.dense import classifier_objective, powerless
from ..objective.regularizers import entropy
from ..objective.settings import REGULARIZERS, TERMS, Objective
from .step_model import StepModel

logger = logging.getLogger(__name__)

FEW = 8  # rows below which a micro-batch says little about covariance and spectrum


class ClassifierModel(StepModel):
    """A sequence classifier whose forward returns the objective; see StepModel for what drives it.

    regularize: the input of diversity and spectrum: "logits" (N, D) as published, or "features" (N, d), the input of the
    head's last layer (ours: with few classes the published terms are constant or nearly so). Labels are (N,): class indices,
    or real numbers if the config's problem_type is "regression".
    """

    averaged = (*(each.name for each in REGULARIZERS if not each.per_sample), "penalty")

    def __init__(self, student: nn.Module, objective: Objective, *, regularize: str = "logits", **options):
        if objective.diversity == "entropy" and objective.top_k is not None and regularize == "logits":
            classes = student.config.num_labels
            if objective.top_k > classes:
                raise UserError(f"top_k {objective.top_k} is above the {classes} classes; lower top_k")
        super().__init__(student, objective, **options)
        self.regularize, self.regression = regularize, student.config.problem_type == "regression"
        self.last = output_layer(student)[1]
        self.warned = False

    def items(self, labels: Tensor) -> Tensor:
        """The number of samples. labels: (N,)."""
        return torch.tensor(len(labels))

    def forward(self, input_ids=None, attention_mask=None, labels=None, num_items_in_batch=None, **inputs):
        """Like the student's forward, with the objective as `loss`. input_ids, attention_mask: (N, T); labels: (N,)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        if labels is None:
            return self.student(**inputs)
        loss, terms, weights, logits, features = self._objective(inputs, labels, num_items_in_batch)
        extra = penalty(self.student)
        if extra is not None:
            terms["penalty"], loss = extra, loss + extra * self.share
        if self.training:
            self.rows = self.rows + (attention_mask.sum() if attention_mask is not None else input_ids.numel())
            self.record(terms, loss, weights)
            if self.logged:
                self._norms(terms, logits, features)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def measure(self, labels=None, **inputs) -> tuple[dict[str, Tensor | None], int]:
        """See StepModel; the items are the samples. labels: (N,)."""
        _, terms, _, logits, _ = self._objective(inputs, labels, 1)  # divided by one item: sums
        if not self.regression:
            terms["accuracy"] = (logits.argmax(-1) == labels).sum()
        return terms, len(labels)

    def _objective(self, inputs: dict, labels: Tensor, num_items) -> tuple:
        """(loss, terms, weights, logits (N, D), features (N, d) or None) of a batch."""
        taught = self.teach(
            lambda labels, **inputs: self.student(**inputs).logits,
            inputs,
            labels,
            lambda: torch.arange(len(labels), device=labels.device),
        )
        logits, features = self._forward(inputs)
        if self.training and not self.warned:
            self._warn(len(labels), logits, features)
        weights, teacher_logits = self.lambdas, taught.beside(logits)
        if self.needs_teacher():
            temperature = self.objective.temperature
            weights = self.weights(lambda: entropy(teacher_logits, temperature).mean(), teacher_logits.shape[1])
        loss, terms = classifier_objective(
            logits,
            teacher_logits,
            labels,
            self.objective,
            weights,
            features=features,
            num_items=num_items,
            share=self.share,
            regression=self.regression,
            all_terms=self.all_terms,
            **taught.options(),
        )
        return loss, terms, weights, logits, features

    def _forward(self, inputs: dict) -> tuple[Tensor, Tensor | None]:
        """(logits (N, D), features (N, d) or None if no term needs them)."""
        if self.regularize == "logits":
            return self.student(**inputs).logits, None
        seen = []
        handle = self.last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            logits = self.student(**inputs).logits
        finally:
            handle.remove()
        features = seen[-1]
        if features.dim() == 3:  # a decoder's head sees every position; the sample's row is that of its last real token
            mask = inputs["attention_mask"]
            last = last_real(torch.ones_like(features[..., 0]) if mask is None else mask)
            features = features[torch.arange(len(features), device=features.device), last]
        return logits, features

    def _warn(self, rows: int, logits: Tensor, features: Tensor | None) -> None:
        """Warn once about terms without effect and about small micro-batches."""
        self.warned = True
        weights = dict(zip(TERMS[1:], self.objective.maxima(), strict=True))
        looked_at = logits if features is None else features
        for name, reason in powerless(self.objective, rows, logits.shape[1], looked_at.shape[1]).items():
            if weights[name] > 0:
                logger.warning("the %s term has no gradient: %s", name, reason)
        if rows < FEW and any(weights.get(name) for name in self.averaged):
            logger.warning(
                "%s are statistics of a micro-batch, and this one has %d rows; raise --micro_batch_size to %d or more",
                " and ".join(name for name in self.averaged if name in weights),
                rows,
                FEW,
            )

    def _norms(self, terms: dict, logits: Tensor, features: Tensor | None) -> None:
        """The gradient norm of each unweighted term with respect to its input: the logits or the features."""
        for name, term in terms.items():
            if term is None or name == "penalty":
                continue
            at = features if features is not None and name in self.averaged else logits
            norm = torch.zeros((), device=term.device)
            if term.requires_grad:
                (gradient,) = torch.autograd.grad(term, at, retain_graph=True, allow_unused=True)
                norm = norm if gradient is None else torch.linalg.vector_norm(gradient.float())
            key = f"output_gradient_{name}"
            self.sums[key] = self.sums.get(key, 0) + norm * self.share
