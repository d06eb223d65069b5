"""Fine-tune a model of your own on a JSONL file: python examples/your_model.py MODEL DATA OUTPUT.

MODEL is a folder with a model and its tokenizer, or a hub id. Each line of DATA has a "prompt" and a "response". OUTPUT becomes a PEFT
adapter for the original model. Rank and rate suit a model of width 2,048; docs/start.md has a table for other widths.
"""

import argparse
import json

import transformers

import ba_lora


def samples(file: str, tokenizer, length: int) -> list[dict]:
    """Token ids and labels of each row. Only the response and the end of sequence are trained: -100 marks what is not."""
    found = []
    with open(file, encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            prompt = tokenizer(row["prompt"]).input_ids
            response = tokenizer(row["response"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
            ids, labels = prompt + response, [-100] * len(prompt) + response
            found.append({"input_ids": ids[:length], "labels": labels[:length]})
    return found


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("model"), parser.add_argument("data"), parser.add_argument("output")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--lambda1", type=float, default=0.025, help="weight of the KL to the base")
    options = parser.parse_args(words)

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    args = transformers.TrainingArguments(
        f"{options.output}-checkpoints",
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
    )
    model = ba_lora.attach(model, "ba-lora", rank=options.rank, alpha=options.rank)
    objective = ba_lora.Objective.preset("iclr", lambda1=options.lambda1)
    data, collator = samples(options.data, tokenizer, 1024), transformers.DataCollatorForSeq2Seq(tokenizer)
    ba_lora.BALoRATrainer(model, objective, args, train_dataset=data, data_collator=collator).train()
    ba_lora.export(model, options.output)


if __name__ == "__main__":
    main()
