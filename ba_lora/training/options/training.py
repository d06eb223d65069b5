"""The steps of the training."""

from dataclasses import dataclass

from ..optimizers import OPTIMIZERS
from .option import option


@dataclass
class TrainingOptions:
    """Steps, batches and the optimiser."""

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
    optimizer: str | None = option(
        None,
        f"{', '.join(OPTIMIZERS)} (8bit, paged and lion ones need bitsandbytes); none = adamw_torch, fused on a GPU without "
        "DeepSpeed",
        group="training",
    )
    weight_decay: float = option(0.0, "weight decay of the optimizer (paper: 0)", group="training")
    max_grad_norm: float = option(1.0, "gradient clipping; 0 = none (published runs: 1.0)", group="training")
    packing: bool = option(
        False,
        "put several samples of a micro-batch into one row, without attention between them; less padding, the same gradients",
        group="training",
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass", group="training")
    compile: bool = option(
        False,
        "compile the model's layers one by one with torch.compile, once the first micro-batch has shown the same loss and gradient "
        "with it; generation in one process, without dropout",
        group="training",
    )
    tf32: bool = option(
        False,
        "on a GPU, let float32 matrix products round their inputs to TensorFloat-32 (10 bits of mantissa): faster, less exact",
        group="training",
    )
    seed: int = option(42, "seed of the initial values and the sample order (ICLR: 42, 1024, 2024)", group="training")
