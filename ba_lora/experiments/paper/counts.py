"""Trained parameters of the published runs, counted from the numbers of configs/models."""

from functools import cache

from ...files import read_yaml
from .published import CONFIGS, Published, Row

BASELINES = ("lora", "pissa")
FACTORED = (*BASELINES, "corda", "ba-lora")  # with rank · (in + out) trained parameters per matrix


@cache
def described(model: str) -> dict:
    return read_yaml(CONFIGS / "models" / f"{model}.yaml")


def matrices(model: str) -> list[tuple[int, int]]:
    """Return (in, out) of every linear layer, except the head, of a dense model of configs/models."""
    numbers = described(model)["numbers"]
    hidden, inner, heads = (numbers[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    size = numbers.get("head_dim", hidden // heads)
    keys = numbers.get("num_key_value_heads", heads)
    attention = [(hidden, heads * size), *[(hidden, keys * size)] * 2, (heads * size, hidden)]
    gated = numbers["model_type"] in ("llama", "mistral", "gemma", "qwen2")
    return (attention + [(hidden, inner)] * (2 if gated else 1) + [(inner, hidden)]) * numbers["num_hidden_layers"]


def trained_parameters(model: str, method: str, rank: int) -> int | None:
    """Return the parameters that a method trains on all linear layers; for full fine-tuning, the model's; None for other methods."""
    if method == "full":
        return described(model)["parameters"]
    if method not in (*FACTORED, "dora"):
        return None
    magnitudes = sum(width for _, width in matrices(model)) if method == "dora" else 0
    return rank * sum(map(sum, matrices(model))) + magnitudes


def implied_rank(published: Published, row: Row) -> int | None:
    """Return the rank at which LoRA has the printed number of parameters; None without such a number."""
    if row.method not in FACTORED or "parameters" not in row.cells:
        return None
    return round(row.cells["parameters"].mean * 10**6 / sum(map(sum, matrices(row.model))))
