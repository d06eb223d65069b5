"""The teacher's contribution to every trained row, computed once and kept on disk (--teacher_cache DIR).

From the pre-trained model the objective needs only u = Σ_v p_T(v)·w_v (d numbers) and c = Σ_v p_T(v)·log p_T(v) for each row
(chunked.py). They depend only on the model, the token ids and T, not on the method, the seed or the epoch: later runs read
them and run no teacher. They are computed with the original model W; the online teacher is W_res + B0·A0, which equals W up to
rounding. So the consistency at step 0 is about 1e-6 instead of exactly 0. For a bfloat16 model, whose W_res is rounded, it was
6e-3 and the gradient differed by 1 % (SmolLM2, rank 32); there the cached teacher is the more accurate one. Stored in bfloat16,
the rows of a float32 model change the gradient by 1e-4; those of a bfloat16 model lose nothing, because they are already that
coarse.

A sketch (--teacher_cache_form sketch) keeps some tokens of each row instead: 392 bytes for any model, and a noise whose mean over the
draws is 0 (docs/objective.md). The data, the sample's number and T fix the draws, so every build gives the same files.

DIR/cache.json     identifies the cache (`facts`) and says whether it is complete; rewritten last, on completion
DIR/rows-N.safetensors    the rows' tensors (teacher_rows.py), samples sorted by length

A shard appears complete or not at all and is built under its own lock: an interrupted build continues, and several processes
share the work. Each run first verifies the shards' checksums; a shard that is damaged, or belongs to another cache, is rebuilt
with a warning.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from ..data.collator import counted
from ..data.instruction import IGNORED
from ..data.samples import Samples
from ..errors import DamagedFile, UserError
from ..files import digest, read_json, write_sealed
from ..folders.disk import existing, writing
from ..folders.ownership import refuse_foreign
from ..folders.tensor_files import load_tensors, of_tensors, save_tensors
from ..methods.target_names import Targets
from ..methods.targets import chosen_layers
from ..objective.head import Split, split
from .teacher_rows import PREFIX, compute, row_bytes, tensors_of, uniforms_of

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when the files' layout, SHARD_BYTES or their content changes
SHARD_BYTES = 1 << 29  # approximate size of a shard; it is held in memory while it is built
BUILD_TOKENS = 8192  # tokens per forward while building, including padding
ROOM = 3e9  # bytes of a GPU that such a forward takes beside the weights; an estimate for widths up to 8192
SAMPLED = 16384  # values of each tensor in the model's hash; all values of the head

# Identity of a cache: key → its name in the message about a mismatch.
FACTS = {
    "format": "version of the format",
    "form": "--teacher_cache_form",
    "entries": "--teacher_cache_entries",
    "temperature": "temperature",
    "dtype": "--teacher_cache_dtype",
    "precision": "precision of the model",
    "weights": "model, by its config and weights",
    "data": "data, tokenizer, template or max_length, by the token ids",
    "labels": "choice of trained tokens",
    "rows": "number of rows",
    "width": "width of the model",
    "vocabulary": "vocabulary",
}
ABSENT = {"form": "exact"}  # the caches of earlier versions do not say it


class Rows(NamedTuple):
    """Per sample, (samples,) each: `lengths` in tokens and `counts` of trained rows. `hash`: hash of which rows count."""

    lengths: np.ndarray
    counts: np.ndarray
    hash: str


class Layout(NamedTuple):
    """Where rows are stored. members: the samples of each shard, in file order; shard, first: per sample, (samples,)."""

    members: list[np.ndarray]
    shard: np.ndarray
    first: np.ndarray
    counts: np.ndarray

    def rows_in(self, shard: int) -> int:
        return int(self.counts[self.members[shard]].sum())


def prepare(
    folder: str | Path,
    model: nn.Module,
    samples,
    data_hash: str,
    *,
    temperature: float,
    dtype: str,
    collate,
    form: str = "exact",
    entries: int = 96,
    target_modules: Targets = None,
    layers: Sequence[int] | None = None,
    device: str | None = None,
    progress: bool = False,
) -> "TeacherCache":
    """Open the cache in `folder`, building the missing parts first.

    model: the original model, before `attach`; it is frozen. samples: with input_ids and labels; data_hash:
    hash of its token ids. collate: turns samples into a padded batch. form: "exact" in `dtype`, or "sketch" of at most `entries`
    tokens a row. target_modules, layers: those the adapter will adapt, which must not include the head for an exact cache. device: where to
    build if the model lies elsewhere, as under ZeRO-3; it is moved there for the build. Raises UserError for a head that needs logits,
    a cache of other content, a disk or a GPU that is too small.
    """
    folder = Path(folder)
    targets = (target_modules, layers) if form == "exact" else (None, None)
    parts = _parts(model, samples[0]["input_ids"][:2], *targets)
    rows = trained_rows(samples)
    facts = {
        "format": FORMAT,
        "temperature": float(temperature),
        **({"dtype": dtype} if form == "exact" else {"form": form, "entries": entries}),
        "precision": str(parts.head.weight.dtype).removeprefix("torch."),
        "weights": weights_hash(model, parts.head),
        "data": data_hash,
        "labels": rows.hash,
        "rows": int(rows.counts.sum()),
        **({"width": parts.head.in_features} if form == "exact" else {"vocabulary": len(parts.head.weight)}),
    }
    layout = make_layout(rows, row_bytes(facts))
    if not _claim(folder, facts, layout) or any(map(partial(_flaw, folder, layout, facts), range(len(layout.members)))):
        _check_space(folder, facts, layout)
        _check_device(folder, model, device)
        with writing("--teacher_cache", folder, "name a folder on another disk"):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".cache.json.lock")
            with lock:
                if not _claim(folder, facts, layout):  # another process may have been faster
                    write_sealed(folder / "cache.json", {"complete": False, **facts})
            with _moved(model, device):
                _build(folder, parts, samples, layout, rows.lengths, facts, collate, progress)
            with lock:
                write_sealed(folder / "cache.json", {"complete": True, **facts})
    return TeacherCache(folder, layout, facts)


class TeacherCache:
    """A complete cache, read by sample number. The shards are memory-mapped, so only the requested rows are read."""

    def __init__(self, folder: Path, layout: Layout, facts: dict):
        self.folder, self.layout, self.facts = folder, layout, facts
        self._open = lru_cache(maxsize=256)(self._open_shard)  # fewer than a process's limit on open files
        for shard in range(len(layout.members)):
            file, least = _file(folder, shard), layout.rows_in(shard) * row_bytes(facts)
            if not file.is_file() or file.stat().st_size < least:
                raise self._damaged(file)

    def rows(self, numbers: list[int]) -> dict[str, Tensor]:
        """{"teacher_" and the name of a tensor: (N, ...)} for the rows of these samples, sample by sample."""
        samples = [self._sample(number) for number in numbers]
        return {PREFIX + name: torch.cat([sample[name] for sample in samples]) for name in tensors_of(self.facts)}

    def _sample(self, number: int) -> dict[str, Tensor]:
        first = int(self.layout.first[number])
        part = slice(first, first + int(self.layout.counts[number]))
        tensors = self._open(int(self.layout.shard[number]))
        return {name: tensors.get_slice(name)[part] for name in tensors_of(self.facts)}

    def _open_shard(self, shard: int):
        file = _file(self.folder, shard)
        try:
            return safe_open(file, framework="pt")
        except (OSError, SafetensorError):
            raise self._damaged(file) from None

    def _damaged(self, file: Path) -> UserError:
        return UserError(
            f"--teacher_cache {self.folder} is damaged: {file.name} is missing or too short; remove the folder to build it again"
        )


def trained_rows(samples: Samples) -> Rows:
    """The rows of encoded samples that count, as in the collator's `counted`, without building a batch."""
    starts = samples.offsets
    is_counted = samples.ragged["labels"] != IGNORED
    is_counted[starts[:-1]] = False  # nothing predicts a sample's first token
    counts = np.diff(np.concatenate([[0], np.cumsum(is_counted)])[starts])
    lengths = samples.lengths
    marks = hashlib.sha256(lengths.astype("<i8").tobytes() + np.packbits(is_counted).tobytes())
    return Rows(lengths, counts, marks.hexdigest())


def make_layout(rows: Rows, bytes_of_a_row: int) -> Layout:
    """Sort the samples by length and cut them into shards of about SHARD_BYTES; deterministic for given rows."""
    order = np.argsort(rows.lengths, kind="stable")
    starts = np.concatenate([[0], np.cumsum(rows.counts[order])])[:-1]
    numbers = np.unique(starts * bytes_of_a_row // SHARD_BYTES, return_inverse=True)[1]
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    members = np.split(order, cuts)
    begin = starts[np.concatenate([[0], cuts])]  # the first row of each shard
    shard, first = np.empty_like(order), np.empty_like(order)
    shard[order], first[order] = numbers, starts - begin[numbers]
    return Layout(members, shard, first, rows.counts)


@torch.no_grad()
def weights_hash(model: nn.Module, head: nn.Linear) -> str:
    """Identity of a model: hash of its config and of up to SAMPLED values of each parameter, spread over it (of the head, all).

    Any training changes it; an edit of a few single values outside the head may not. Takes seconds for a large model.
    """
    aside = ("_name_or_path", "transformers_version", "dtype")
    config = {key: value for key, value in model.config.to_dict().items() if key not in aside}
    total = hashlib.sha256(digest(config).encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        step = 1 if parameter is head.weight else max(flat.numel() // SAMPLED, 1) | 1  # odd: not only one column
        total.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        total.update(flat[::step].contiguous().cpu().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _parts(model: nn.Module, ids: list[int], targets: Targets, layers: Sequence[int] | None) -> Split:
    """Body and head of the original model, frozen. Raises UserError if the adapted model will need logits."""
    model.requires_grad_(False)
    model.eval()
    parts, reason = split(model, torch.tensor([ids], device=next(model.parameters()).device))
    if parts is not None:
        (name,) = (name for name, module in model.named_modules() if module is parts.head)
        if name in chosen_layers(model, targets, layers=layers):
            reason = f"the head, {name}, is adapted"
    if reason:
        raise UserError(f"--teacher_cache holds no logits, which this run needs: {reason}; leave it out")
    return parts


def _claim(folder: Path, facts: dict, layout: Layout) -> bool:
    """Return True if `folder` holds the complete cache of `facts`. Raises UserError if it holds anything else.

    A damaged cache.json is rewritten if the shards identify themselves as part of this cache.
    """
    refuse_foreign(folder, "teacher cache", "--teacher_cache")
    if not (folder / "cache.json").is_file():
        return False
    try:
        held = read_json(folder / "cache.json")
    except DamagedFile:
        shards = {_file(folder, shard): _of(facts, shard) for shard in range(len(layout.members))}
        if any(shards.get(file) != of_tensors(file) for file in folder.glob("rows-*.safetensors")):
            raise UserError(
                f"--teacher_cache {folder} is damaged: cache.json cannot be read, and the shards do not say what they belong to; "
                "remove the folder to build it again"
            ) from None
        logger.warning("%s is damaged; it is written again", folder / "cache.json")
        return False
    for name, what in FACTS.items():
        was, wanted = (record.get(name, ABSENT.get(name)) for record in (held, facts))
        if was != wanted:
            then, now = (str(value)[:12] for value in (was, wanted))
            raise UserError(
                f"--teacher_cache {folder} is of another {what} ({then}, now {now}); "
                "name another folder, or remove this one to build it again"
            )
    return bool(held.get("complete"))


def _check_space(folder: Path, facts: dict, layout: Layout) -> None:
    """Raise UserError if the shards still to be built need more space than the disk has."""
    size = row_bytes(facts)
    left = sum(layout.rows_in(shard) for shard in range(len(layout.members)) if not _file(folder, shard).exists())
    free = shutil.disk_usage(existing(folder)).free
    if left * size > free:
        smaller = "fewer --teacher_cache_entries" if "form" in facts else "--teacher_cache_form sketch"
        raise UserError(
            f"--teacher_cache {folder} needs {left * size / 1e9:,.3f} GB ({left:,} rows of {size:,} bytes) and its disk has "
            f"{free / 1e9:,.3f} GB free; use another disk, fewer samples (--limit) or {smaller}"
        )


def _check_device(folder: Path, model: nn.Module, device: str | None) -> None:
    """Raise UserError if the model has to be moved to a GPU that is too small for it."""
    if _is_there(model, device):
        return
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    free = torch.cuda.mem_get_info(device)[0]
    if size + ROOM > free:
        raise UserError(
            f"--teacher_cache {folder} is built with the whole model on one GPU, which needs {(size + ROOM) / 1e9:.1f} GB, and {device} "
            f"has {free / 1e9:.1f} GB free; leave it out (ZeRO-3 divides the teacher too), or build it first with --max_steps 1 and "
            "another --output_dir on a larger GPU or with --use_cpu"
        )


@contextlib.contextmanager
def _moved(model: nn.Module, device: str | None) -> Iterator[None]:
    """Hold the model on `device` inside the block, and where it was afterwards."""
    if _is_there(model, device):
        yield
        return
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)
        torch.cuda.empty_cache()  # DeepSpeed and the training find the memory free


def _is_there(model: nn.Module, device: str | None) -> bool:
    return device is None or next(model.parameters()).device == torch.device(device)


def _build(folder: Path, parts: Split, samples, layout: Layout, lengths, facts: dict, collate, progress: bool) -> None:
    """Build the missing shards: first those that no other process is building, then those that one left unfinished."""
    total = facts["rows"]
    done = set()
    with tqdm(total=total, desc="teacher cache", unit="row", disable=not progress) as bar:
        for wait in (False, True):
            for shard, members in enumerate(layout.members):
                if shard in done:
                    continue
                file = _file(folder, shard)
                lock = FileLock(file.with_name(f".{file.name}.lock"), blocking=wait)
                with contextlib.suppress(Timeout), lock:
                    if wrong := _flaw(folder, layout, facts, shard):
                        if file.exists():
                            logger.warning("%s; it is built again", wrong)
                        tensors = _shard(parts, samples, members, lengths, layout.rows_in(shard), facts, collate, bar)
                        temporary = file.with_name(f".{file.name}.tmp")
                        save_tensors(tensors, temporary, _of(facts, shard))
                        os.replace(temporary, file)
                    done.add(shard)


@torch.no_grad()
def _shard(parts: Split, samples, members, lengths, rows: int, facts: dict, collate, bar) -> dict[str, Tensor]:
    """The tensors of the samples `members`, in that order: {name: (rows, ...)}."""
    device = parts.head.weight.device
    made = {name: torch.empty((rows, *shape), dtype=dtype) for name, (shape, dtype) in tensors_of(facts).items()}
    start = 0
    for numbers in _batches(members, lengths):
        batch = {name: tensor.to(device) for name, tensor in collate([samples[int(n)] for n in numbers]).items()}
        mask = counted(batch.pop("labels"))
        hidden = parts.body(**batch, use_cache=False).last_hidden_state[:, :-1][mask]
        uniforms = None
        if facts.get("form") == "sketch":
            draws = (uniforms_of(facts, int(n), int(count)) for n, count in zip(numbers, mask.sum(1), strict=True))
            uniforms = torch.cat([*draws])
        end = start + len(hidden)
        for name, tensor in compute(facts, hidden, parts.head, uniforms).items():
            made[name][start:end] = tensor.cpu()
        start = end
        bar.update(len(hidden))
    return made


def _batches(members: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Cut `members`, sorted by length, into batches of about BUILD_TOKENS tokens including padding; at least one sample each."""
    batches, start = [], 0
    for end in range(1, len(members) + 1):
        if end == len(members) or (end + 1 - start) * lengths[members[end]] > BUILD_TOKENS:
            batches.append(members[start:end])
            start = end
    return batches


def _file(folder: Path, shard: int) -> Path:
    return folder / f"rows-{shard:05d}.safetensors"


def _of(facts: dict, shard: int) -> str:
    """The identity that a shard records."""
    return digest([facts, shard])


def _flaw(folder: Path, layout: Layout, facts: dict, shard: int) -> str | None:
    """Describe what is wrong with a shard (missing, damaged, from another cache), or return None. Reads the whole shard."""
    file, rows = _file(folder, shard), layout.rows_in(shard)
    if not file.exists():
        return f"{file} is missing"
    try:
        tensors = load_tensors(file, _of(facts, shard))
    except DamagedFile as error:
        return str(error)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: (rows, *shape) for name, (shape, _) in tensors_of(facts).items()}
    return None if shapes == expected else f"{file} holds other tensors"
