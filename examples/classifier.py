"""Fine-tune a classifier of your own texts: python examples/classifier.py MODEL DATA OUTPUT.

MODEL is a folder with a model and its tokenizer, or a hub id. Each line of DATA has a "text" and a "label"; the last tenth is held
out. OUTPUT becomes the adapter with the trained head.
"""

import argparse
import json

import torch
import transformers

import ba_lora
from ba_lora.training.classifier_model import ClassifierModel


def accuracy(model, collator, samples: list[dict]) -> float:
    """The share of the samples whose likeliest class is the labelled one."""
    batch = collator([dict(sample) for sample in samples]).to(model.device)
    labels = batch.pop("labels")
    with torch.no_grad():
        return (model.eval()(**batch).logits.argmax(-1) == labels).float().mean().item()


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("model"), parser.add_argument("data"), parser.add_argument("output")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--epochs", type=float, default=3)
    options = parser.parse_args(words)

    with open(options.data, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    held_out, names = len(rows) // 10, sorted({row["label"] for row in rows})
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(names))
    texts = tokenizer([row["text"] for row in rows], truncation=True, max_length=256, return_token_type_ids=False)
    parts = zip(texts["input_ids"], texts["attention_mask"], rows, strict=True)
    samples = [{"input_ids": i, "attention_mask": m, "labels": names.index(row["label"])} for i, m, row in parts]
    args = transformers.TrainingArguments(
        f"{options.output}-checkpoints",
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=16,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
    )
    model = ba_lora.attach(model, "ba-lora", rank=options.rank, alpha=options.rank)  # the new head is trained whole
    more = {"train_dataset": samples[:-held_out], "data_collator": transformers.DataCollatorWithPadding(tokenizer)}
    objective = ba_lora.Objective.preset("iclr", task="nlu", svd_k=1)  # below the number of classes
    ba_lora.BALoRATrainer(model, objective, args, wrapper=ClassifierModel, **more).train()
    print(f"accuracy on {held_out} held-out texts: {accuracy(model, more['data_collator'], samples[-held_out:]):.3f}")
    ba_lora.export(model, options.output)


if __name__ == "__main__":
    main()
