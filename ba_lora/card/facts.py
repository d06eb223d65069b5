"""The names in a card, without a path of the machine, and the form of what a run has saved."""

import os
import re
from pathlib import Path

from ..data.sources import is_generated
from ..files import read_json
from ..methods.names import method_of
from ..texts import code

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # excludes "./folder"
FILES = (".json", ".jsonl", ".ndjson", ".parquet", ".csv")


def hub_id(name: str) -> str | None:
    """The hub id in `name` (USER/NAME, possibly with ":PART" of a data set), or None for anything local or generated."""
    whole = name.partition(":")[0]
    local = name.endswith(FILES) or os.path.exists(name) or os.path.exists(whole)  # False for what no path can be
    return whole if HUB_ID.fullmatch(whole) and not local else None


def public_name(name: str) -> str:
    """`name` without a path of this machine: a hub id, package or generator stays as it is; a path is reduced to its last part."""
    return name if hub_id(name) or name.startswith(("package:", "twin:", "tinymath:", "planted:")) else Path(name).name


def data_name(config: dict) -> str:
    """The name of the training data; for a task without a named data set, the source of its data."""
    from ..data.glue import HUB

    own = "rated review sentences (registry package vaderSentiment)" if config.get("task") == "reviews" else HUB
    return config["data"] or own


def source(config: dict) -> str:
    """The source of the training data, in Markdown."""
    copy = code(Path(config["data_path"]).name) if config.get("data_path") else None
    name = data_name(config)
    if copy and is_generated(name):  # the default, which the file replaced
        return copy
    return code(public_name(name)) + (f" (from a local copy, {copy})" if copy else "")


def peft_of(saved: Path) -> dict | None:
    """PEFT's config of the adapter; None if PEFT does not have the method."""
    file = saved / "adapter_config.json"
    kinds = {"r?": "a whole number", "lora_alpha?": "a number"}
    return read_json(file, kinds=kinds, remedy="copy the adapter again") if file.is_file() else None


def starts_from_pissa(record: dict, saved: Path) -> bool:
    """Return True if export had to double the rank to express the adapter on the original base."""
    if not method_of(record["config"]["method"]).is_lora:
        return False
    return read_json(saved / "adapter_config.json")["r"] != record["config"]["rank"]
