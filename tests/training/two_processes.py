"""Train a small model and save its trained tensors and losses: what each process of test_distributed.py does."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from ba_lora.data.pairs import PadPairs
from ba_lora.methods.attach import attach
from ba_lora.methods.save import saved_parameters
from ba_lora.objective.settings import Objective
from ba_lora.sharding import gathered
from ba_lora.training import step_model
from ba_lora.training.classifier_model import ClassifierModel
from ba_lora.training.held_out import HeldOut
from ba_lora.training.objective_model import ObjectiveModel
from ba_lora.training.teacher_share import draw
from ba_lora.training.trainer import BALoRATrainer
from ba_lora.training.validation import Validation
from tests.common import collate, ragged_samples, small_llama
from tests.training.test_classifier_model import small_bert
from tests.training.test_trainer import arguments

OBJECTIVE = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3, svd_norm="frobenius")


def as_two_ranks(form, step, micro, rank, present, may_be_short=False):
    """The draws of two processes, which take turns at the micro-batches, for a process that has them all."""
    return draw(form, step, micro // 2, micro % 2, present, may_be_short)


def main(
    folder: Path,
    accumulation: int,
    method: str,
    deepspeed: str | None = None,
    steps: int = 20,
    share: float = 1.0,
    held_out: int = 0,
) -> None:
    """method: a method's name, "classifier" (BA-LoRA on one), "delta" (BA-LoRA in that form) or "delayed" (BA-LoRA whose teacher
    starts after some steps).

    accumulation: 2 for each of two processes, 4 for one alone, which then has the draws of two. share: of the teacher. held_out: the number of
    held-out samples, which the model sees before the training (without DeepSpeed) and after every third step.
    """
    classify, delayed = method == "classifier", method == "delayed"
    form = "delta" if method == "delta" else "residual"
    objective = replace(OBJECTIVE, lambda1_schedule="two_phase") if delayed else OBJECTIVE
    method = "ba-lora" if classify or delayed or form == "delta" else method
    options = {"rank": 4, "alpha": 4, "keep_initial": True, "start_form": form}
    model = attach(small_bert() if classify else small_llama(), method, **options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pad = PadPairs(SimpleNamespace(pad_token_id=0, eos_token_id=2)) if classify else collate
    held = [s | {"labels": s["input_ids"][1] % 3} if classify else s for s in ragged_samples(held_out, seed=9)]
    validation = Validation(HeldOut(held, pad, {}), 2, every=3, keep="best") if held_out else None
    trainer = BALoRATrainer(
        model,
        replace(OBJECTIVE, top_k=None, svd_k=1, diversity="covariance") if classify else objective,
        arguments(
            folder, max_steps=steps, gradient_accumulation_steps=accumulation, logging_steps=1, deepspeed=deepspeed
        ),
        metrics=folder / "metrics.jsonl",
        teacher_share=share,
        train_dataset=[s | {"labels": s["input_ids"][1] % 3} for s in ragged_samples(160)]
        if classify
        else ragged_samples(160),
        data_collator=pad,
        validation=validation,
        wrapper=ClassifierModel if classify else ObjectiveModel,
    )
    start = torch.cat([p.detach().flatten() for p in trained])
    first = validation.look() if validation and not deepspeed else None
    with mock.patch.object(step_model, "draw", as_two_ranks if accumulation == 4 else draw):
        trainer.train()
    if not classify:
        assert bool(trainer.objective_callback.model.parts) == (method != "full"), "which form trained"
    with gathered(trained):
        end = torch.cat([p.detach().flatten() for p in trained])
    if trainer.is_world_process_zero():
        torch.save({"start": start, "end": end}, folder / "tensors.pt")
    with gathered(saved_parameters(model)):
        if validation and trainer.is_world_process_zero():
            validation.restore(model, folder)
            best = torch.cat([p.detach().flatten() for p in trained])
            torch.save({"first": first, "best": best, "state": validation.state}, folder / "validation.pt")
