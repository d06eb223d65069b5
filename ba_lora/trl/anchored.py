"""A mixin that adds the objective to a trainer of causal language models: `class AnchoredSFTTrainer(Anchored, SFTTrainer)`.

The trainer keeps its model, data and options. The objective is computed inside the forward of that model, so that
DistributedDataParallel and DeepSpeed see one forward and one backward; it is the one of training/objective_model.py.
"""

import logging
from collections import defaultdict
from pathlib import Path
from types import MethodType

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Trainer

from ..methods.delta import delta_layers
from ..methods.teacher import has_teacher, keep_initial_copy, rests_on_its_base
from ..objective.settings import Objective
from ..training.objective_model import ObjectiveModel
from .interval import IntervalCallback
from .refusals import objective_of, refuse
from .reports import feed

logger = logging.getLogger(__name__)


class Anchored:
    """Put in front of SFTTrainer or transformers.Trainer: the task loss plus a divergence from the pre-trained model.

    model: a PeftModel, or what the trainer makes one of (`peft_config` of SFTTrainer). Its pre-trained model is the base without the
    adapter; where the start changed the base's weights (PiSSA, OLoRA …), it is the model as it is now, of whose trained tensors a
    frozen copy is kept. A model from `ba_lora.attach` brings its own.

    anchor: form of the divergence, "kl" or "mse". weight: its weight; 0 for none. temperature: of the KL. diversity, spectrum:
    weights of the other two terms. objective: an Objective instead of all these, with schedules and every form. metrics: path of a
    metrics.jsonl as BALoRATrainer writes it, or None.

    Every term is logged as its mean over the steps since the last log, in evaluation under `eval_…`. Raises UserError for options
    and models that the objective does not cover.
    """

    def __init__(
        self,
        *args,
        anchor: str = "kl",
        weight: float = 0.25,
        temperature: float = 1.0,
        diversity: float = 0.0,
        spectrum: float = 0.0,
        objective: Objective | None = None,
        metrics: str | Path | None = None,
        **options,
    ):
        chosen = objective_of(objective, anchor, weight, temperature, diversity, spectrum)
        super().__init__(*args, **options)
        refuse(self)
        if chosen.uses_teacher() and not has_teacher(self.model):
            keep_initial_copy(self.model)
        if delta_layers(self.model) or not rests_on_its_base(self.model):
            logger.warning(
                "an adapter that this trainer saves fits only a base with the same start; ba_lora.export(trainer.model, folder) "
                "writes plain LoRA for the original base"
            )
        self.args.logging_nan_inf_filter = False  # a non-finite loss is never replaced by an average
        self.model_accepts_loss_kwargs = (
            True  # Trainer then counts the rows of the whole step and does not divide by the accumulation
        )
        self.objective_model = ObjectiveModel(self.model, chosen, observe=True)
        _route(self.model, self.objective_model)
        self.interval = IntervalCallback(self.objective_model, metrics)
        self.add_callback(self.interval)
        self.evaluated: dict[str, list[Tensor]] = defaultdict(list)  # terms of the batches of an evaluation

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective of a micro-batch. With return_outputs the logits take a forward pass of their own, since the objective makes none."""
        inputs = {**inputs, "use_cache": False}
        loss = Trainer.compute_loss(self, model, {**inputs, "anchored": True}, num_items_in_batch=num_items_in_batch)
        seen = dict(self.objective_model.observed)
        feed(self, inputs, *(seen.pop(name) for name in ("rows", "entropy", "accuracy")))
        if not self.model.training:
            for name, term in seen.items():
                self.evaluated[name].append(term)
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{name: value for name, value in inputs.items() if name != "labels"})

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As the trainer's, but no logits are made where only the loss is wanted."""
        if not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def log(self, logs: dict, *more, **options) -> None:
        """Add the terms to the values that the trainer logs."""
        if "loss" in logs:
            logs.update(self.interval.means())
        elif not self.model.training:
            means = {name: torch.stack(terms).mean() for name, terms in self.evaluated.items()}
            logs.update({f"eval_{name}": self.accelerator.gather(mean).mean().item() for name, mean in means.items()})
            self.evaluated.clear()
        super().log(logs, *more, **options)


def _route(model: PeftModel, objective_model: ObjectiveModel) -> None:
    """Let `model(..., anchored=True)` return the objective; any other call is unchanged. The trainer may wrap `model` afterwards."""
    plain = getattr(
        model.forward, "__func__", type(model).forward
    )  # not bound, so that a deep copy of the model calls itself

    def forward(self, *args, anchored: bool = False, **inputs):
        if not anchored:
            return plain(self, *args, **inputs)
        objective_model.training = self.training
        outer = vars(self)["forward"]
        # accelerate may have wrapped this one in an autocast context, which breaks if the objective enters it a second time
        self.forward = MethodType(plain, self)
        try:
            return objective_model(*args, **inputs)
        finally:
            self.forward = outer

    model.forward = MethodType(forward, model)
