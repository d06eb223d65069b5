"""TRL's SFTTrainer with a KL to the base: the same arguments, and those of the anchor. Runs on the embedded model, without the hub.

python examples/trl_sft.py [OUTPUT]
"""

import sys

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from ba_lora.tiny import MODEL_DIR
from ba_lora.trl import Anchored


class AnchoredSFTTrainer(Anchored, SFTTrainer):
    """SFTTrainer, plus weight · T²·KL(base ‖ model) at temperature T."""


output = sys.argv[1] if len(sys.argv) > 1 else "runs/trl_sft"
rows = [{"prompt": f"{a} plus {b} is", "completion": f" {a + b}."} for a in range(12) for b in range(12)]
data = Dataset.from_list(rows).train_test_split(16, seed=0)

trainer = AnchoredSFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(MODEL_DIR),
    processing_class=AutoTokenizer.from_pretrained(MODEL_DIR),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    train_dataset=data["train"],
    eval_dataset=data["test"],
    args=SFTConfig(
        output,
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=10,
        bf16=False,
        report_to="none",
    ),
    anchor="kl",
    weight=0.25,
    temperature=2.0,
)
trainer.train()
trainer.save_model(output)
print({name: round(value, 3) for name, value in trainer.evaluate().items()})
