"""Peak memory of a training step: TRL's SFTTrainer, and the same with the anchor. A random model; each runs in a process of its own.

    python examples/trl_memory.py [VOCABULARY] [TOKENS]

On a GPU, what its allocator holds at most; on a CPU, the growth of the process from before the first step to its peak.
"""

import resource
import subprocess
import sys

vocabulary, tokens = (int(word) for word in (sys.argv[1:3] + ["32000", "512"][len(sys.argv[1:3]) :]))
KINDS = {
    "SFTTrainer": None,
    "anchored, weight 0.25": {"weight": 0.25},
    "all three terms": {"diversity": 0.01, "spectrum": 0.01},
}


def peak(name: str) -> float:
    """MiB of two steps of batches of 4 sequences."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from ba_lora.tiny import MODEL_DIR
    from ba_lora.trl import Anchored

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    options = KINDS[name]
    kind = SFTTrainer if options is None else type("AnchoredSFTTrainer", (Anchored, SFTTrainer), {})
    ids = torch.randint(3, 700, (8, tokens)).tolist()
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    trainer = kind(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)),
        processing_class=AutoTokenizer.from_pretrained(MODEL_DIR),
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids]),
        args=SFTConfig("runs/trl_memory", max_steps=2, per_device_train_batch_size=4, bf16=False, **quiet),
        **(options or {}),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    trainer.train()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


if len(sys.argv) == 4:
    print("MiB", round(peak(sys.argv[3])))
else:
    print(f"V = {vocabulary}, 4 × {tokens} tokens, logits in float32: {4 * tokens * vocabulary * 4 / 2**20:.0f} MiB")
    for name in KINDS:
        done = subprocess.run(
            [sys.executable, __file__, str(vocabulary), str(tokens), name], capture_output=True, text=True
        )
        print(f"{name:<24}{done.stdout.split('MiB')[-1].strip() or done.stderr[-500:]} MiB")
