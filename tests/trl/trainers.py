"""Trainers for the tests of the mixin: a small Llama, the embedded tokenizer, and options under which a step is exact."""

import datasets
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from ba_lora.models import load_tokenizer
from ba_lora.trl import Anchored
from tests.common import collate, ragged_samples, small_llama

trl = pytest.importorskip("trl", reason="trl needs Python 3.11: pip install -r requirements.txt")
SFTConfig, SFTTrainer = trl.SFTConfig, trl.SFTTrainer

VOCABULARY = 768  # of the embedded tokenizer
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
datasets.disable_progress_bars()


class AnchoredTrainer(Anchored, transformers.Trainer):
    """In front of a plain Trainer."""


class AnchoredSFTTrainer(Anchored, SFTTrainer):
    """In front of TRL's."""


def with_adapter(base=None, seed: int = 1, **options) -> PeftModel:
    """`base`, by default a small Llama, with an adapter from stock PEFT."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(small_llama() if base is None else base, LoraConfig(**{**LORA, **options}))


def arguments(folder, kind=transformers.TrainingArguments, **changes):
    exact = {"bf16": False, "gradient_checkpointing": False} if kind is SFTConfig else {}
    return kind(
        str(folder),
        **{
            **exact,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "max_steps": 2,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            **changes,
        },
    )


def plain(folder, model, samples=None, evaluated=None, options=None, **changes):
    """An AnchoredTrainer. options: of the mixin."""
    return AnchoredTrainer(
        model=model,
        args=arguments(folder, remove_unused_columns=False, **changes),
        train_dataset=ragged_samples(12) if samples is None else samples,
        eval_dataset=evaluated,
        data_collator=collate,
        **(options or {}),
    )


def sft(folder, samples=None, *, model=None, kind=AnchoredSFTTrainer, evaluated=None, options=None, **changes):
    """An SFTTrainer, by default an anchored one, on tokenized samples or rows of texts. options: of the mixin, or more of the trainer's."""
    rows = ragged_samples(12) if samples is None else samples
    tokenizer = load_tokenizer("tiny")
    options = dict(options or {})
    model = small_llama(vocab_size=VOCABULARY) if model is None else model
    if not isinstance(model, PeftModel):
        options.setdefault("peft_config", LoraConfig(**LORA))
    tokenizer.chat_template = options.pop("chat_template", tokenizer.chat_template)
    return kind(
        model=model,
        args=arguments(folder, SFTConfig, **changes),
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=None if evaluated is None else datasets.Dataset.from_list(evaluated),
        processing_class=tokenizer,
        **options,
    )


def trained(model) -> torch.Tensor:
    """The trained values in one vector."""
    return torch.cat([p.detach().flatten().clone() for p in model.parameters() if p.requires_grad])


def gradient(trainer, batches) -> torch.Tensor:
    """The gradient of an optimiser step of these micro-batches, in one vector; with the weights of the first step."""
    model = trainer.model.train()
    model.zero_grad()
    trainer.objective_model.begin_step(0, 1, len(batches))
    items = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    for batch in batches:
        trainer.compute_loss(model, dict(batch), num_items_in_batch=items).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()
