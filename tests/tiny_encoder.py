"""A tiny random encoder with its own vocabulary, and small data for three tasks, in the hub's columns as JSON lines."""

import json
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

GOOD, BAD = ["good", "great", "fine"], ["bad", "awful", "poor"]
OTHERS = ["film", "story", "actor", "the", "a", "is", "was", "and"]


def sentence(draw: random.Random, label: int) -> str:
    """Some words, one of which reveals the label."""
    words = [draw.choice(OTHERS) for _ in range(draw.randint(2, 6))]
    words.insert(draw.randint(0, len(words)), draw.choice(GOOD if label else BAD))
    return " ".join(words)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_home(home: Path) -> Path:
    """encoder/, sst2/, cola/ and stsb/ in the folder `home`, and imdb.jsonl."""
    draw = random.Random(0)
    (home / "encoder").mkdir()
    (home / "encoder/vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHERS])
    )
    BertTokenizerFast(vocab=str(home / "encoder/vocab.txt")).save_pretrained(home / "encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=19, max_position_embeddings=32, **sizes)).save_pretrained(home / "encoder")
    for split, count in (("train", 160), ("validation", 60)):
        labels = [draw.randint(0, 1) for _ in range(count)]
        rows = [{"sentence": sentence(draw, label), "label": label, "idx": n} for n, label in enumerate(labels)]
        write_rows(home / f"sst2/{split}.jsonl", rows)
        write_rows(home / f"cola/{split}.jsonl", rows)
        pairs = [
            {"sentence1": row["sentence"], "sentence2": row["sentence"], "label": 5.0 * row["label"], "idx": row["idx"]}
            for row in rows
        ]
        write_rows(home / f"stsb/{split}.jsonl", pairs)
    write_rows(home / "sst2/test.jsonl", [{"sentence": sentence(draw, 1), "label": -1, "idx": n} for n in range(5)])
    write_rows(home / "imdb.jsonl", [{"text": sentence(draw, n % 2), "label": n % 2} for n in range(40)])
    return home
