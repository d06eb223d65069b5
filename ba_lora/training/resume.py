"""Hashes in run.json of everything that defines a run, compared so that --resume never mixes two runs.

    tokenizer         vocabulary, merges, special tokens and chat template
    data.hash         token ids of the samples in their order; for a classifier, also the labels
    data.trained      which of these tokens are trained
    validation.hash   token ids and labels of the held-out rows
    features          token ids and labels of the examples whose features are saved
    order_hash        the order in which the first two epochs visit the samples
    base.config       the base model's config, without keys that do not affect any value
    base.weights      every value of every tensor of the base model, before it is adapted
    start             the initial values of the trained tensors, with A0 and B0 of the delta form; null for full fine-tuning,
                      which starts at the base
    deepspeed         the content of --deepspeed

Each is compared as soon as it is known, before anything is written. The hashes are fast_hash's or SHA-256; they do not
protect against forgery. Runs of earlier versions lack some of them; a warning names these.
"""

import logging
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, distributed, nn

from ..data.samples import Samples
from ..errors import UserError
from ..files import digest, read_json
from ..folders import fast_hash
from ..machine.processes import is_first
from ..methods.delta import start_tensors
from . import checkpoints
from .arguments import TrainArguments

logger = logging.getLogger(__name__)

# Key in run.json → its name in messages. {data}, {model}, {start} and {deepspeed} are the sources.
FACTS = {
    "deepspeed": "the content of {deepspeed}",
    "tokenizer": "the tokenizer of {model}",
    "data.hash": "the data of {data} (token ids)",
    "data.trained": "the choice of trained tokens in {data}",
    "task.labels": "the classes",
    "features": "the examples of --features_split",
    "validation.hash": "the held-out rows",
    "order_hash": "the order of the samples",
    "teacher_cache": "the use of --teacher_cache",
    "base.config": "the config of {model}",
    "base.weights": "the weights of {model}",
    "start": "the initial values in {start}",
}
# Recorded by every run; earlier versions recorded only the first two.
ALWAYS = ("data.hash", "order_hash", "tokenizer", "data.trained", "base.config", "base.weights", "start")
SERIALISED = ("tokenizer", "base.config")  # as transformers writes them: comparable only within one version of it
# keys of a config that do not affect any value
ASIDE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
SAMPLED = 16384  # values of each tensor that every process hashes
MISSING = object()


def tensors_hash(tensors: Iterable[tuple[str, Tensor]], most: int | None = None) -> str:
    """Fast hash (hex) of names, shapes, dtypes and values: all values, or about `most` values per tensor, spread over it."""
    total = fast_hash.new()
    for name, tensor in _plain(tensors):
        flat = tensor.detach().reshape(-1)
        step = 1 if most is None else max(flat.numel() // most, 1) | 1  # odd: not only one column
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(flat[::step].contiguous().cpu().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _plain(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors; wrappers (some libraries' quantised tensors) are replaced by the tensors inside them."""
    for name, tensor in tensors:
        if hasattr(tensor, "__tensor_flatten__"):
            yield from _plain((f"{name}.{inner}", getattr(tensor, inner)) for inner in tensor.__tensor_flatten__()[0])
        elif isinstance(tensor, Tensor):  # a state dict may hold other things
            yield name, tensor


@torch.no_grad()
def base_of(model: nn.Module) -> dict[str, str | None]:
    """{"config", "sample", "weights"} of a model before it is adapted: hashes of its config, of some values of each tensor, and
    of all values. The last takes about 0.2 s per GB and is computed on rank 0 only (None on the others)."""
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in ASIDE}
    state = model.state_dict()
    return {
        "config": digest(config),
        "sample": tensors_hash(state.items(), SAMPLED),
        "weights": tensors_hash(state.items()) if is_first() else None,
    }


def start_of(model: nn.Module, method: str) -> str | None:
    """Hash of the trained tensors of an adapted model before training, and of A0 and B0 in the delta form; None for full
    fine-tuning."""
    if method == "full":
        return None
    start = start_tensors(model)
    return tensors_hash(
        (name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad or name in start
    )


def tokenizer_hash(tokenizer) -> str:
    """Identity of a tokenizer that has not encoded anything yet; encoding may store a length limit in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return digest([vocabulary, special, getattr(tokenizer, "chat_template", None)])


def trained_hash(samples: Samples) -> str:
    """Hash of the labels of encoded samples: the trained tokens and their targets."""
    total = fast_hash.new(samples.ragged["labels"].astype("<i8").tobytes())
    total.update(samples.lengths.astype("<i8").tobytes())
    return total.hexdigest()


def refuse_changes(arguments: TrainArguments, now: dict) -> None:
    """Compare `now`, a part of the new run.json, with the run.json of the run that --resume continues.

    Every process calls this; rank 0 compares. Raises UserError on all of them, with the old and the new value.
    """
    problem = from_first(_problem(arguments, now) if arguments.resume and is_first() else None)
    if problem:
        raise UserError(problem)


def from_first(value):
    """Rank 0's `value`, on every process; all of them have to call this."""
    if distributed.is_available() and distributed.is_initialized():
        return broadcast_object_list([value])[0]
    return value


def _problem(arguments: TrainArguments, now: dict) -> str | None:
    folder = Path(arguments.output_dir)
    if not (folder / "run.json").is_file():
        if not checkpoints.saved(folder / "checkpoints"):
            return None
        return (
            f"--resume: {folder} holds checkpoints but no run.json, which says what they belong to; put it back from a copy, or "
            "start again with --overwrite"
        )
    before = read_json(folder / "run.json")
    if "tokenizer" in now:  # this is the first comparison
        _say_what_is_not_compared(folder, before, now)
    places = {
        "model": arguments.model,
        "data": arguments.data_path or arguments.data or f"the task {arguments.task}",
        "start": folder / "checkpoints" / checkpoints.START,
        "deepspeed": arguments.deepspeed,
    }
    changed = [name for name in FACTS if _differs(name, before, now)]
    if "data.hash" in changed:  # the other two follow from the data
        changed = [name for name in changed if name not in ("data.trained", "order_hash")]
    if not changed:
        return None
    told = [f"{FACTS[name].format_map(places)} ({_shown(name, before)}, now {_shown(name, now)})" for name in changed]
    return (
        f"--resume would mix two runs: since {folder} was begun, this has changed: {', '.join(told)}; put it back, or train "
        "anew with --overwrite or into another --output_dir"
    )


def _say_what_is_not_compared(folder: Path, before: dict, now: dict) -> None:
    lacking = [name for name in ALWAYS if _at(before, name) is MISSING]
    if _at(now, "data.trained") is MISSING:  # a classifier's data.hash covers the labels
        lacking = [name for name in lacking if name != "data.trained"]
    if lacking:
        logger.warning(
            "%s/run.json was written by an earlier version, without hashes of: %s; these are not compared",
            folder,
            ", ".join(lacking),
        )


def _differs(name: str, before: dict, now: dict) -> bool:
    if name in SERIALISED and _at(before, "versions.transformers") != metadata.version("transformers"):
        return False
    was, value = _at(before, name), _at(now, name)
    return MISSING not in (was, value) and fast_hash.differ(was, value)


def _at(record: dict, name: str):
    """The value at a key such as "data.hash", or MISSING."""
    for key in name.split("."):
        if not isinstance(record, dict) or key not in record:
            return MISSING
        record = record[key]
    return bool(record) if name == "teacher_cache" else record


def _shown(name: str, record: dict) -> str:
    value = _at(record, name)
    text = value[:12] if isinstance(value, str) else str(value)
    return f"{text}, {record['data'].get('kept', '?')} samples" if name == "data.hash" else text
