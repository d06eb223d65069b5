"""transformers.Trainer with the objective: a fixed sample order, every term logged, small checkpoints, loud failures.

The objective itself lives in the model (objective_model.ObjectiveModel), so a stock Trainer can drive it too: wrap the model and
add ObjectiveCallback.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from ..methods.precision import keep_inputs_under_autocast
from ..methods.save import saved_parameters
from ..objective.settings import Objective
from ..sharding import gathered, only_tensors
from . import checkpoints
from .callbacks import PROGRESS, ObjectiveCallback
from .objective_model import ObjectiveModel
from .order import FixedOrder
from .progress import StepBar, StepLines
from .step_model import StepModel
from .teacher_rows import PREFIX
from .teacher_share import TeacherShare
from .validation import Validation

logger = logging.getLogger(__name__)


class BALoRATrainer(Trainer):
    """Trainer for a model from `attach`. Everything else is transformers.Trainer's.

    objective: an Objective. metrics: path of metrics.jsonl or None. all_terms, gradient_norms: see StepModel. order: order of
    the samples; None = determined by the seed alone. teacher_share: see TeacherShare. wrapper: class that wraps `model` with the objective.
    validation: looks at held-out rows, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        args: TrainingArguments,
        *,
        metrics: str | Path | None = None,
        all_terms: bool = False,
        gradient_norms: bool = False,
        order: FixedOrder | None = None,
        teacher_share: float = 1.0,
        wrapper: Callable[..., StepModel] = ObjectiveModel,
        validation: Validation | None = None,
        **options: Any,
    ):
        self.order, self.place, self.last_saved = order, None, None
        args.logging_nan_inf_filter = False  # a non-finite loss is never replaced by an average
        if args.n_gpu > 1:
            logger.warning(
                "1 of %d GPUs is used; to use all, start one process per GPU: torchrun, or sh scripts/ba-lora.sh CONFIG",
                args.n_gpu,
            )
            args._n_gpu = 1  # transformers would use nn.DataParallel, whose replicas have no teacher and lose the terms
        if args.bf16 or args.fp16:
            keep_inputs_under_autocast(model)
        share = TeacherShare(teacher_share, args.per_device_train_batch_size, args.seed)
        wrapped = wrapper(model, objective, all_terms=all_terms, gradient_norms=gradient_norms, teacher_share=share)
        super().__init__(model=wrapped, args=args, **options)
        self.objective_callback = ObjectiveCallback(wrapped, metrics)
        self.add_callback(self.objective_callback)
        self.validation = validation
        if validation is not None:
            validation.trainer = self
            self.add_callback(validation)
        for printing in (PrinterCallback, ProgressCallback):
            self.remove_callback(printing)
        for showing in (StepBar, StepLines):
            self.add_callback(showing(self.objective_callback, validation))

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        if self.order is not None:
            return self.order
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return FixedOrder(len(dataset), self.args.data_seed if self.args.data_seed is not None else self.args.seed)

    def _get_num_items_in_batch(self, batch_samples: list, device) -> Tensor | None:
        """Items of the whole optimiser step, over the micro-batches of all processes."""
        if not batch_samples:
            return None
        items = self.objective_callback.model.items
        rows = sum(items(batch["labels"]) for batch in batch_samples).to(device)
        return self.accelerator.gather(rows).sum() if self.args.world_size > 1 else rows

    def _prepare_inputs(self, inputs: dict) -> dict:
        """Keep the precision of the teacher's contribution; under DeepSpeed transformers rounds inputs to the model's precision."""
        kept = {name: inputs[name].to(self.args.device) for name in inputs if name.startswith(PREFIX)}
        return {**super()._prepare_inputs(inputs), **kept}

    def log(self, logs: dict, *more, **options) -> None:
        """Add the objective's terms to the values that transformers logs for a step."""
        row = self.objective_callback.row
        if "loss" in logs and row and row["step"] == self.state.global_step:
            logs = {**logs, **{key: value for key, value in row.items() if value is not None}}
        super().log(logs, *more, **options)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        """As transformers', but DeepSpeed's part of a checkpoint omits the frozen tensors and runs no pickled code."""
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        engine = self.model_wrapped
        engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)
        if resume_from_checkpoint is not None:
            with only_tensors():
                deepspeed_load_checkpoint(engine, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return prepared

    def _run_epoch(self, **options) -> None:
        """Do nothing for a run that is resumed after its last step: transformers would take one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**options)

    def _get_output_dir(self, trial=None) -> str:
        """The folder in which transformers writes a checkpoint: initially a temporary name."""
        return str(self.place or super()._get_output_dir(trial))

    def save_last(self, complete: bool) -> None:
        """Save a checkpoint after the last step; without the optimizer's state unless `complete`, since no training follows.

        DeepSpeed reads only its own files, which hold that state."""
        before = self.args.save_only_model
        self.args.save_only_model = not (complete or self.is_deepspeed_enabled)
        try:
            self._save_checkpoint(self.model, None)
        finally:
            self.args.save_only_model = before
        self.last_saved = self.state.global_step

    def _save_checkpoint(self, model, trial) -> None:
        """As transformers', but all or nothing; older checkpoints are removed only after success."""
        if self.state.global_step == self.last_saved:  # save_last has already written it
            return
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"{checkpoints.PREFIX}{self.state.global_step}"
        first = self.is_world_process_zero()
        self.state.stateful_callbacks[PROGRESS] = self.objective_callback.progress(self.args.device)
        student = self.objective_callback.model.student

        def fill(place: Path) -> None:
            checkpoints.keep_start(student, folder / checkpoints.START, first=first)
            self.place = place
            try:
                super(BALoRATrainer, self)._save_checkpoint(model, trial)
            finally:
                self.place = None
            if first and (folder / checkpoints.BEST).is_file() and self.validation and self.validation.keeps_best:
                checkpoints.put(folder / checkpoints.BEST, place / checkpoint.name / checkpoints.BEST)
            if first and self.objective_callback.metrics:
                checkpoints.keep_beside(self.objective_callback.metrics.parent, place / checkpoint.name)

        checkpoints.write(checkpoint, fill, first=first, device=self.args.device)
        if first and self.args.save_total_limit:
            checkpoints.prune(folder, checkpoint, self.args.save_total_limit)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Let rank 0 call `_save` with whole tensors; transformers would gather the whole model under DeepSpeed."""
        with gathered(saved_parameters(self.objective_callback.model.student)):
            if self.args.should_save:
                self._save(output_dir)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """Save the trained tensors, never the base model."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.save_trained(self.objective_callback.model.student, folder / checkpoints.TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        folder, student = Path(resume_from_checkpoint), self.objective_callback.model.student
        checkpoints.check_start(student, folder.parent / checkpoints.START)
        checkpoints.restore_trained(student, folder / checkpoints.TRAINED)
