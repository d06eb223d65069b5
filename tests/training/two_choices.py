"""Train a small model with an optimizer or with modules trained whole: what each process of test_choices_under_zero.py does."""

from pathlib import Path

import torch

from ba_lora.methods.attach import attach
from ba_lora.sharding import gathered
from ba_lora.training.trainer import BALoRATrainer
from tests.common import collate, ragged_samples, small_llama
from tests.training.test_trainer import arguments
from tests.training.two_processes import OBJECTIVE

RATES = {"sgd": 0.1}  # of the optimizers that move by the size of the gradient


def main(
    folder: Path, accumulation: int, optimizer: str, modules: tuple[str, ...] = (), deepspeed: str | None = None
) -> None:
    """accumulation: 2 for each of two processes, 4 for one alone."""
    model = attach(small_llama(), "ba-lora", rank=4, alpha=4, modules_to_save=modules)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options = {"max_steps": 8, "gradient_accumulation_steps": accumulation, "logging_steps": 1}
    options |= {"optim": optimizer, "learning_rate": RATES.get(optimizer, 1e-3), "deepspeed": deepspeed}
    trainer = BALoRATrainer(
        model,
        OBJECTIVE,
        arguments(folder, **options),
        metrics=folder / "metrics.jsonl",
        train_dataset=ragged_samples(64),
        data_collator=collate,
    )
    start = torch.cat([p.detach().flatten() for p in trained])
    trainer.train()
    with gathered(trained):
        end = torch.cat([p.detach().flatten() for p in trained])
    if trainer.is_world_process_zero():
        torch.save({"start": start, "end": end}, folder / "tensors.pt")
