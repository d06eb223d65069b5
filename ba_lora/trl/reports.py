"""The values that TRL's SFTTrainer reports beside the loss, from the sums of a micro-batch.

TRL computes them from outputs that the objective does not make. They are TRL's own: the same names, and the same means over micro-batches.
"""

import torch
from torch import Tensor


def feed(trainer, inputs: dict, rows: Tensor, entropy: Tensor, right: Tensor) -> None:
    """Add a micro-batch to the metrics of an SFTTrainer; nothing for a trainer that keeps none.

    rows: number of trained tokens; entropy: the sum of their entropies in nats; right: the number that the model ranks first.
    """
    if not hasattr(trainer, "_metrics"):
        return
    mode = "train" if trainer.model.training else "eval"
    local = torch.stack([each.double() for each in (rows, entropy, right, _tokens(inputs))])
    rows, entropy, right, tokens = trainer.accelerator.reduce(local, reduction="sum").tolist()
    metrics = trainer._metrics[mode]
    metrics["entropy"].append(entropy / rows if rows else 0.0)
    metrics["mean_token_accuracy"].append(right / rows if rows else 0.0)
    if mode == "train":
        trainer._total_train_tokens += int(tokens)
    metrics["num_tokens"] = [trainer._total_train_tokens]


def _tokens(inputs: dict) -> Tensor:
    """The number of tokens of a batch without padding; a packed one has none."""
    mask = inputs.get("attention_mask")
    ids = inputs["input_ids"]
    return mask.sum() if mask is not None else torch.tensor(ids.numel(), device=ids.device)
