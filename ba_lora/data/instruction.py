"""Instruction data: records from a file, the prompt, and the token ids that training and evaluation share.

The training ids of a sample are exactly the prompt's ids as the evaluation sends them, then the response's ids, then the
end-of-sequence token. Prompt and response are encoded apart, so no merge of the tokenizer can reach across the border, and
the mask comes from their lengths, never from a comparison with the padding token.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..errors import UserError, choose
from ..files import digest, read_json

logger = logging.getLogger(__name__)

IGNORED = -100  # the label of a position that no loss looks at


@dataclass(frozen=True)
class Template:
    """How an instruction becomes a prompt. `separator` stands between prompt and response and is encoded with the response."""

    name: str
    prompt: str
    separator: str

    def render(self, instruction: str) -> str:
        return self.prompt.replace("{instruction}", instruction)


TEMPLATES = {
    # The Alpaca-style prompt of the published runs; the response follows "Response:" directly, as there.
    "alpaca": Template(
        "alpaca",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{instruction}\n\n### Response:",
        "",
    ),
    "plain": Template("plain", "Question: {instruction}\nAnswer:", " "),
}

# Pairs of field names that are recognised without being named, in this order.
KNOWN_FIELDS = (("question", "answer"), ("query", "response"), ("instruction", "output"), ("prompt", "completion"))


def template_of(folder: str | Path) -> Template | None:
    """The template recorded in the run.json of a run folder, or of the run that an adapter folder belongs to."""
    for place in (Path(folder), Path(folder).parent):
        if (place / "run.json").is_file():
            recorded = read_json(place / "run.json").get("template")
            return Template(**recorded) if recorded else None
    return None


def encode_prompt(tokenizer, template: Template, instruction: str) -> list[int]:
    """Token ids of the prompt. The tokenizer's own beginning-of-sequence token, if it adds one, stands first, once."""
    ids = tokenizer(template.render(instruction), add_special_tokens=True)["input_ids"]
    if tokenizer.eos_token_id is not None and tokenizer.bos_token_id != tokenizer.eos_token_id:
        while ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers close every text
            ids = ids[:-1]
    return list(ids)


def encode_sample(tokenizer, template: Template, instruction: str, response: str, max_length: int) -> dict | None:
    """Ids and labels of one training sample, or None when no response token is left to train on.

    Returns {"input_ids", "labels"}; labels are -100 over the prompt. A sample longer than `max_length` loses its end
    (and with it the end-of-sequence token, because it does not end there).
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; set tokenizer.eos_token before training")
    prompt = encode_prompt(tokenizer, template, instruction)
    if not response.strip() or len(prompt) >= max_length:
        return None
    answer = tokenizer(template.separator + response, add_special_tokens=False)["input_ids"]
    ids = prompt + list(answer) + [tokenizer.eos_token_id]
    labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def read_records(path: str | Path, limit: int | None = None) -> list[dict]:
    """The rows of a .jsonl, .json (a list) or .parquet file, the first `limit` of them.

    Raises UserError naming the file (and the line) when it is missing, empty or broken.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"data file {path} does not exist; give the path of a .jsonl, .json or .parquet file")
    if path.suffix == ".parquet":
        records = _read_parquet(path)
    elif path.suffix == ".json":
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{path} is not valid JSON ({error}); for one object a line use the ending .jsonl"
            ) from None
        if not isinstance(records, list):
            raise UserError(f"{path} holds a {type(records).__name__}, a list of objects is needed")
    elif path.suffix in (".jsonl", ".ndjson"):
        records = _read_jsonl(path, limit)
    else:
        raise UserError(f"{path} ends in '{path.suffix}'; .jsonl, .json and .parquet can be read")
    if not records:
        raise UserError(f"{path} has no rows")
    return records[:limit]


def _read_jsonl(path: Path, limit: int | None) -> list[dict]:
    records = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and len(records) >= limit:
                break
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error}); mend or remove the line") from None
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number}: a {type(record).__name__}, an object with fields is needed")
            records.append(record)
    return records


def _read_parquet(path: Path) -> list[dict]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.lib.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file ({error})") from None


def read_pairs(source: str, fields: tuple[str, str] | None = None, limit: int | None = None) -> list[tuple[str, str]]:
    """(instruction, response) pairs from a file or, for "tinymath:SPLIT[:SEED]", from the generator.

    `fields` names the two columns; without it the known pairs are tried. GSM8K's own files are question/answer.
    """
    if source.startswith("tinymath:"):
        from .tinymath import generate

        split, _, seed = source.removeprefix("tinymath:").partition(":")
        records = generate(split, limit or 4000, int(seed or 0))
    else:
        records = read_records(source, limit)
    present = list(records[0])
    if fields is None:
        fields = next((pair for pair in KNOWN_FIELDS if set(pair) <= set(present)), None)
        if fields is None:
            raise UserError(
                f"{source} has the fields {', '.join(present)}; name two of them with --fields PROMPT RESPONSE"
            )
    pairs = []
    for number, record in enumerate(records, 1):
        for field in fields:
            if field not in record:
                raise UserError(
                    f"{source}, row {number} has no field '{field}' (it has: {', '.join(record)}); see --fields"
                )
            if not isinstance(record[field], str):
                raise UserError(f"{source}, row {number}: field '{field}' is {record[field]!r}, a text is needed")
        pairs.append((record[fields[0]], record[fields[1]]))
    return pairs


def encode_pairs(tokenizer, template: Template, pairs, max_length: int) -> tuple[list[dict], dict]:
    """All samples that have something to train on, and a report {"read", "kept", "no_response", "truncated", "hash"}.

    `hash` is that of the token ids kept, in their order: the identity of the training data.
    """
    samples, empty, truncated = [], 0, 0
    for instruction, response in tqdm(pairs, desc="encode", unit="sample", disable=len(pairs) < 5000):
        sample = encode_sample(tokenizer, template, instruction, response, max_length)
        if sample is None:
            empty += 1
            continue
        truncated += sample["input_ids"][-1] != tokenizer.eos_token_id or len(sample["input_ids"]) < 2
        samples.append(sample)
    if empty:
        logger.warning(
            "%d of %d samples have no response within %d tokens and are left out", empty, len(pairs), max_length
        )
    if not samples:
        raise UserError(f"no sample has a response within max_length {max_length}; raise --max_length")
    report = {"read": len(pairs), "kept": len(samples), "no_response": empty, "truncated": truncated}
    return samples, report | {"hash": digest([sample["input_ids"] for sample in samples])}


def check_template(name: str) -> Template:
    """The template called `name`; UserError with the known names otherwise."""
    return TEMPLATES[choose("template", name, TEMPLATES)]
