"""KL to the true base at step 0: of the reference that TRL takes from an adapted model, and of ba_lora.reference. In nats per token."""

import copy

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.utils import use_adapter

import ba_lora
from ba_lora.objective.regularizers import consistency_kl
from ba_lora.tiny import MODEL_DIR

base = AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval()
inputs = AutoTokenizer.from_pretrained(MODEL_DIR)("Tom has 12 apples and gives 5 of them to Ann.", return_tensors="pt")
inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
with torch.no_grad():
    original = base(**inputs).logits[0]

lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
models = {
    "LoRA": get_peft_model(copy.deepcopy(base), lora),
    "PiSSA, residual": ba_lora.attach(copy.deepcopy(base), "pissa", rank=16, alpha=16),
    "PiSSA, delta": ba_lora.attach(copy.deepcopy(base), "pissa", rank=16, alpha=16, start_form="delta"),
}
print(f"{'start':<18}{'use_adapter(model, None)':>26}{'ba_lora.reference(model)':>26}")
for name, model in models.items():
    with use_adapter(model.eval(), None), torch.no_grad():
        theirs = model(**inputs).logits[0]
    ours = ba_lora.reference(model)(**inputs).logits[0]
    print(f"{name:<18}{consistency_kl(theirs, original):>26.7f}{consistency_kl(ours, original):>26.7f}")
