"""A training loop of your own: cross-entropy plus 0.25·KL to the base. Any causal language model takes the place of the embedded one."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ba_lora
from ba_lora.tiny import MODEL_DIR

tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
model = ba_lora.attach(AutoModelForCausalLM.from_pretrained(MODEL_DIR), "ba-lora", rank=8, alpha=8)
wrapped = ba_lora.ObjectiveModel(model, ba_lora.Objective(lambda1=0.25, temperature=2.0)).train()
optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=2e-3)
texts = [f"{a} plus {b} is {a + b}." for a in range(8) for b in range(8)]
batches = [tokenizer(texts[i : i + 8], return_tensors="pt", padding=True) for i in range(0, 64, 8)]
for batch in batches:
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
for step in range(12):
    micro_batches = [batches[(2 * step + i) % len(batches)] for i in range(2)]
    items = sum(wrapped.items(batch["labels"]) for batch in micro_batches)
    wrapped.begin_step(step, 12, micro_batches=2)  # sets the weights of this step
    for batch in micro_batches:
        wrapped(**batch, num_items_in_batch=items).loss.backward()
    optimizer.step(), optimizer.zero_grad()
    print(step, {name: round(value.item(), 4) for name, value in wrapped.sums.items()})
ba_lora.export(model, "runs/loop_torch/adapter")
