"""Small random bodies of four architectures, a classifier on one of them, and some steps of its training."""

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaModel,
)

from ba_lora.methods.adalora import after_step, penalty
from ba_lora.methods.attach import attach
from ba_lora.models import load_classifier
from tests.common import VOCABULARY

LABELS = ("negative", "positive", "mixed")
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
V3 = {  # these settings turn DeBERTa-v2 into v3
    **{"type_vocab_size": 0, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
    **{"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    **{"max_relative_positions": -1, "pooler_dropout": 0.0},
}
GPT2 = {
    **{"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "initializer_range": 0.2,
}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
BODIES = {
    "bert": lambda: BertModel(BertConfig(**SIZES, pad_token_id=0)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES, pad_token_id=1), add_pooling_layer=False),
    "deberta": lambda: DebertaV2Model(DebertaV2Config(**SIZES, **V3, pad_token_id=0)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
}
HEADS = {"bert": ["classifier"], "roberta": ["classifier"], "deberta": ["pooler", "classifier"], "gpt2": ["score"]}
STEPS = 4


def classifier(base, method, labels=LABELS, **options):
    model, head = load_classifier(base, labels, seed=7)
    return attach(
        model, method, **{"rank": 4, "alpha": 4, "keep_initial": True, "total_steps": STEPS, "head": head} | options
    )


def padded_batch(pad: int) -> dict:
    """Four texts of 3 to 9 tokens, padded on the right, and their classes."""
    generator, lengths = torch.Generator().manual_seed(1), [9, 3, 6, 7]
    ids = torch.randint(3, VOCABULARY, (4, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


def batch_for(model) -> dict:
    return padded_batch(model.config.pad_token_id)


def train(model, steps=2, batch=None):
    """Steps on the classes 0, 1, 2, 0 (or the batch's own loss), with the penalty and the ranks of AdaLoRA."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    inputs, labels = batch or batch_for(model), torch.tensor([0, 1, 2, 0])
    model.train()
    torch.manual_seed(0)  # dropout decides which ranks AdaLoRA keeps; a layer that keeps none would not move
    for step in range(steps):
        loss = model(**inputs).loss if batch else cross_entropy(model(**inputs).logits, labels)
        extra = penalty(model)
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        after_step(model, step)
        optimizer.zero_grad()
    model.eval()


def close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def owner_of(model, head):
    """The module `head` of the model beneath the adapter."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).get_submodule(head)
