"""A loop with accelerate, on one process or several (accelerate launch): cross-entropy plus 0.25·KL to the base."""

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

import ba_lora
from ba_lora.tiny import MODEL_DIR

tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
model = ba_lora.attach(AutoModelForCausalLM.from_pretrained(MODEL_DIR), "ba-lora", rank=8, alpha=8)
wrapped = ba_lora.ObjectiveModel(model, ba_lora.Objective(lambda1=0.25, temperature=2.0)).train()
optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=2e-3)
texts = [tokenizer(f"{a} plus {b} is {a + b}.") for a in range(10) for b in range(10)]
loader = torch.utils.data.DataLoader(texts, 8, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False))
accelerator = Accelerator()
prepared, optimizer, loader = accelerator.prepare(wrapped, optimizer, loader)
for step, batch in enumerate(loader):
    items = accelerator.gather(wrapped.items(batch["labels"])).sum()  # of all processes
    wrapped.begin_step(step, len(loader), ranks=accelerator.num_processes)  # sets the weights of this step
    loss = prepared(**batch, num_items_in_batch=items).loss
    accelerator.backward(loss * accelerator.num_processes)  # whose gradients the processes average
    optimizer.step(), optimizer.zero_grad()
    accelerator.print(step, {name: round(value.item(), 4) for name, value in wrapped.sums.items()})
ba_lora.export(model, "runs/loop_accelerate/adapter") if accelerator.is_main_process else None
