"""The metadata at the head of a card, in the hub's terms."""

from pathlib import Path

from ..methods.names import method_of
from .facts import data_name, hub_id, peft_of, starts_from_pissa


def front_matter(record: dict, saved: Path) -> str:
    """The YAML between the two lines of hyphens. record: run.json. saved: the folder that the card lies in."""
    from huggingface_hub import ModelCardData

    data = hub_id(data_name(record["config"]))
    return ModelCardData(
        base_model=hub_id(record["model"]),
        library_name="transformers" if saved.name == "model" else "peft" if peft_of(saved) else "ba-lora",
        pipeline_tag="text-classification" if record.get("task") else "text-generation",
        tags=_tags(record, saved),
        datasets=[data] if data else None,
    ).to_yaml()


def _tags(record: dict, saved: Path) -> list[str]:
    if saved.name == "model":
        return ["full-fine-tuning"]
    if not peft_of(saved) or not method_of(record["config"]["method"]).is_lora:
        return [record["config"]["method"]]
    return sorted({record["config"]["method"], "lora", "pissa" if starts_from_pissa(record, saved) else "lora"})
