"""The training data, and the options of a classification."""

from dataclasses import dataclass

from ...data.corruption import KINDS
from ...data.glue import TASKS
from ...data.templates import IN_TEXT
from ...methods.names import PLACES
from .option import option


@dataclass
class DataOptions:
    """The data and, with --task, the classes."""

    data: str | None = option(
        None,
        "training data: a .jsonl, .json, .parquet or .csv file, a folder, a hub id, a hub id and its folder or config as in "
        "fxmeng/pissa-dataset:metamath, tinymath:SPLIT[:SEED], or planted:SPLIT[:SEED]; none = tinymath:train, or the task's own",
        group="data",
    )
    data_path: str | None = option(
        None, "local copy (a file, or a folder in the hub's layout) to read instead of what data names", group="data"
    )
    data_split: str = option("train", "split of a folder or a hub id", group="data")
    fields: list[str] | None = option(
        None,
        "names of the prompt and response fields, of instruction, input and output, or of a single field that holds the "
        "conversation; none = the usual names",
        group="data",
    )
    ignore_columns: list[str] | None = option(
        None,
        "columns and message keys to leave out of training; system, history, weight (0 or 1) and train are used; descriptive "
        "columns (id, source, type ...) are always left out; any other column is an error unless named here",
        group="data",
    )
    shuffle_data: bool = option(False, "shuffle all rows with the seed before limit is applied", group="data")
    limit: int | None = option(None, "use the first N rows", group="data")
    skip_bad_rows: bool = option(
        False, "skip rows that are not a conversation and count them in run.json, instead of stopping", group="data"
    )
    max_length: int = option(512, "tokens per sample; longer ones are cut at the end (paper: 512)", group="data")
    template: str | None = option(
        None,
        "prompt: alpaca (paper), plain, or chat (the tokenizer's own); none = plain for 'tiny', else alpaca",
        group="data",
    )
    special_tokens_in_text: str = option(
        "text",
        "how to read </s>, <|im_end|> and the like in a text: as text, or as control tokens, which can end an answer in the "
        "middle; the evaluation of the run does the same",
        choices=IN_TEXT,
        group="data",
    )
    group_by_length: bool = option(
        False, "put samples of similar length into the same micro-batch, for less padding", group="data"
    )

    task: str | None = option(None, f"classify instead of generating: {', '.join(TASKS)}", group="classification")
    regularize: str = option(
        "logits",
        "input of diversity and spectrum: the logits (paper), or the pooled features that enter the last layer of the head "
        "(ours: with two or three classes the published spectrum term is constant)",
        choices=PLACES,
        group="classification",
    )
    model_dropout: float | None = option(
        None,
        "dropout of the model itself; 0 makes consistency start at exactly 0; none = the model's own",
        group="classification",
    )
    label_noise: float = option(0.0, "share of the training labels to corrupt, seeded", group="classification")
    label_noise_kind: str = option(
        "symmetric", "to any other class, or each class to the next", choices=KINDS, group="classification"
    )
    class_shares: list[str] | None = option(
        None, "share of a class's training samples to keep, e.g. negative=0.1", group="classification"
    )
    features_steps: list[int] | None = option(
        None,
        "save the last hidden layer for t-SNE after these steps (0 = before training) and at the end",
        group="classification",
    )
    features_split: str = option("validation", "split whose features are saved", group="classification")
    features_examples: int = option(1000, "number of examples sampled from that split", group="classification")
