"""What is left of planted content in a model, with its ability beside it.

For a probe with the alternatives a (taught to twin A) and b (taught to twin B), s = p(a) / (p(a) + p(b)). The trace of a class
of items is T = 100 · mean (s of twin A − s of twin B), in points: 100 if all is kept, 0 if it is gone. As T is linear in s, the
means of s of each model are enough.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from ..data.planted.items import Item
from ..data.planted.probes import Probe, probes
from ..data.planted.rows import planted_rows
from ..tiny.recipe import cut_in_order, encode_problem, pad

BATCH = 256  # sequences per forward
PROBLEMS = 200  # held-out problems per loss


def measure(model, tokenizer, seed: int) -> dict:
    """Return {"s": {kind: {dose: mean s}}, "task_loss", "own_loss"} of a model of the pair `seed`.

    The losses are the means over response tokens, in nats, of held-out problems of the fine-tuning task and of the
    pre-training task that touch no planted product.
    """
    model.eval()
    of_item = defaultdict(list)
    made = probes(seed)
    for probe, share in zip(made, shares(model, tokenizer, made), strict=True):
        of_item[probe.item].append(share)
    losses = {
        name: response_loss(model, tokenizer, planted_rows(split, PROBLEMS))
        for name, split in (("task_loss", "neutral-test"), ("own_loss", "own-test"))
    }
    return {"s": grouped({item: sum(values) / len(values) for item, values in of_item.items()}), **losses}


def grouped(of_item: dict[Item, float]) -> dict[str, dict[str, float]]:
    """Return {kind: {dose: mean over its items}}; doses are texts, as JSON has them."""
    groups = defaultdict(lambda: defaultdict(list))
    for item, value in of_item.items():
        groups[item.kind][str(item.dose)].append(value)
    return {
        kind: {dose: round(sum(values) / len(values), 6) for dose, values in sorted(doses.items())}
        for kind, doses in groups.items()
    }


@torch.inference_mode()
def shares(model, tokenizer, asked: Sequence[Probe]) -> list[float]:
    """Return s of each probe: the probability of `first` relative to that of both, from the first token that differs."""
    encoded = []
    for probe in asked:
        prompt = tokenizer.encode(probe.prompt) if probe.prompt else []
        pair = [prompt + tokenizer.encode(text) for text in (probe.first, probe.second)]
        start = next(place for place, (a, b) in enumerate(zip(*pair, strict=True)) if a != b)
        encoded += [(ids, [-100] * start + ids[start:]) for ids in pair]
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place][0]))
    logs = torch.empty(len(encoded), dtype=torch.float64)
    for places in cut_in_order(order, BATCH):
        logs[places] = -_losses(model, tokenizer, [encoded[place] for place in places]).sum(1).double()
    return torch.sigmoid(logs[0::2] - logs[1::2]).tolist()


@torch.inference_mode()
def response_loss(model, tokenizer, rows: Sequence[dict]) -> float:
    """Return the mean cross-entropy of the rows' answers and their end token, in nats per token."""
    total = tokens = 0
    for samples in cut_in_order(
        sorted((encode_problem(tokenizer, row) for row in rows), key=lambda s: len(s[0])), BATCH
    ):
        total += _losses(model, tokenizer, samples).sum().item()
        tokens += sum(label != -100 for _, labels in samples for label in labels[1:])
    return total / tokens


def _losses(model, tokenizer, samples) -> torch.Tensor:
    """Return the cross-entropy of each labelled token, 0 elsewhere: (samples, longest − 1)."""
    batch = pad(samples, tokenizer.pad_token_id)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    return cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=-100, reduction="none")
