"""Train with AnchoredSFTTrainer and save its trained tensors and losses: what each process of test_two_processes.py does."""

import json
from pathlib import Path

import torch

from ba_lora.sharding import gathered
from tests.common import ragged_samples, small_llama
from tests.trl.trainers import VOCABULARY, sft

OPTIONS = {"weight": 0.3, "temperature": 2.0, "diversity": 0.02, "spectrum": 0.1}


def main(folder: Path, accumulation: int, deepspeed: str | None = None, recomputing: bool = False) -> None:
    """accumulation: 2 for each of two processes, 4 for one alone."""
    trainer = sft(
        folder,
        ragged_samples(64),
        model=small_llama(vocab_size=VOCABULARY),
        options=OPTIONS,
        max_steps=8,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=recomputing,
        deepspeed=deepspeed,
    )
    adapter = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    start = torch.cat([p.detach().flatten() for p in adapter])
    trainer.train()
    with gathered(adapter):
        end = torch.cat([p.detach().flatten() for p in adapter])
    if trainer.is_world_process_zero():
        torch.save({"start": start, "end": end}, folder / "tensors.pt")
        rows = [row for row in trainer.state.log_history if "loss" in row]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
