"""Checkpoints that are either complete or absent, and the start from which a resumed run is rebuilt.

    checkpoints/start.safetensors   A0, B0 and the initial values of a head, written once before step 1
    checkpoints/best.safetensors    with --keep best: the trained tensors of the step with the lowest loss on the held-out rows so far
    checkpoints/checkpoint-N/       after optimiser step N: trained.safetensors, and transformers' optimizer.pt, scheduler.pt,
                                    rng_state.pth and trainer_state.json, which it reads without running pickled code
      best.safetensors              with --keep best: the trained tensors of the best step up to N
      run.json, metrics.jsonl       copies from step N: they identify the run and let it continue
      manifest.json                 bytes and SHA-256 of each file, and SHA-256 of start.safetensors; written last

A checkpoint is written under a temporary name, synced to disk and renamed; older ones are removed only after that. No
checkpoint holds the base model: in the residual form W_res = W - s·B0·A0 is recomputed from the base and start.safetensors exactly
as at the first start, so a resumed run decomposes nothing and continues bit for bit.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import DamagedFile, RunFailure, UserError
from ..files import hash_of, read_json, sha256, write_json
from ..folders.tensor_files import load_tensors, save_tensors
from ..methods.adalora import allocator_state, restore_allocator
from ..methods.attach import attached_to
from ..methods.teacher import initial_copy, initial_tensors, kept_parameters
from ..sharding import gathered
from .interruptions import cause, on_any_process

logger = logging.getLogger(__name__)

START, TRAINED, MANIFEST = "start.safetensors", "trained.safetensors", "manifest.json"
BEST = "best.safetensors"
PREFIX = "checkpoint-"  # transformers' name
LEFTOVER = re.compile(rf"\.({PREFIX}\d+|{re.escape(START)}|{re.escape(BEST)})\.tmp")
BESIDE = ("run.json", "metrics.jsonl")  # in the run folder; copied into each checkpoint
STATE = "trainer_state.json"  # transformers' name
ALWAYS = ((TRAINED,), (STATE,))  # every checkpoint has these
# Training continues from one file of each pair; the second is for several processes or DeepSpeed.
TO_GO_ON = (
    ("optimizer.pt", "latest"),
    ("scheduler.pt", "latest"),
    ("rng_state.pth", "rng_state_0.pth"),
)


def write(folder: Path, fill: Callable[[Path], None], *, first: bool, device: torch.device) -> None:
    """Make the checkpoint `folder` from the files that `fill(place)` writes as place/NAME; it appears complete or not at all.

    Every process calls this and writes to the same place; rank 0 seals it. If one process fails, RunFailure is raised on all
    of them, the temporary files are removed and the previous content stays.
    """
    place = folder.with_name(f".{folder.name}.tmp")
    made = [parent for parent in (folder.parent, folder.parent.parent) if not first and not parent.exists()]

    def together(action: Callable[[], None]) -> None:
        failure = None
        try:
            action()
        except Exception as error:
            failure = error
        if on_any_process(failure is not None, device):
            raise failure or RunFailure(f"another process could not write {folder}; its own message says why")

    try:
        together(lambda: _make_empty(place) if first else None)
        together(lambda: fill(place))
        together(lambda: _seal(place / folder.name, folder) if first else None)
    except UserError:
        raise
    except Exception as error:
        raise RunFailure(
            f"{folder} could not be written: {cause(error, folder) or error}; it was left out and the checkpoint before it "
            "is whole: fix that and continue with --resume"
        ) from error
    finally:  # on every process: a machine that does not share the folder has files of its own, and nothing else there
        shutil.rmtree(place, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _seal(filled: Path, folder: Path) -> None:
    """Write the manifest, sync everything to disk and rename `filled`."""
    files = {str(path.relative_to(filled)): path for path in sorted(filled.rglob("*")) if path.is_file()}
    for path in files.values():
        _sync(path)
    entries = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
    start = folder.with_name(START)
    write_json(filled / MANIFEST, {"files": entries, "start": sha256(start) if start.is_file() else None})
    for path in (filled, *(path for path in filled.rglob("*") if path.is_dir())):
        _sync(path)
    shutil.rmtree(folder, ignore_errors=True)  # an incomplete one, from which the run did not continue
    os.rename(filled, folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flaw(checkpoint: Path, hashes: bool = True) -> str | None:
    """Describe what is wrong with a checkpoint (a file is missing, unlisted, too short or altered); None if it is complete.

    hashes: read the files; False compares only their sizes.
    """
    try:
        manifest = read_json(checkpoint / MANIFEST)
        listed = manifest["files"]
        there = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("[!.]*") if path.is_file()}
        needed = (*ALWAYS, *(TO_GO_ON if STATE not in listed or _steps_left(checkpoint / STATE) else ()))
        for names in (*needed, *((name,) for name in sorted(there - {MANIFEST}))):
            if not any(name in listed for name in names):
                return f"{MANIFEST} does not list {names[0]}"
        for name, entry in listed.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes and had {entry['bytes']}"
            if hashes and sha256(path) != entry["sha256"]:
                return f"{name} was altered"
        start = checkpoint.with_name(START)
        if hashes and manifest.get("start") and start.is_file() and hash_of(start) != manifest["start"]:
            return f"it does not belong to this {START}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read" if not isinstance(error, OSError) else f"{error.strerror}: {error.filename}"
    return None


def _steps_left(state: Path) -> bool:
    """Return True if a checkpoint has steps left; the one after the last step holds only the trained tensors."""
    facts = read_json(state)
    return facts["global_step"] < facts["max_steps"]


def saved(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, complete or not, newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def remove_leftovers(folder: Path) -> None:
    """Remove incomplete checkpoints and an incomplete start that a killed process left behind."""
    for path in folder.glob(".*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which the checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def newest(folder: Path, alien: Callable[[dict], str | None] = lambda run: None) -> Path | None:
    """The newest complete checkpoint in `folder`, or None; incomplete ones are skipped and named.

    alien: takes a checkpoint's run.json and returns why it belongs to another run, or None; such checkpoints are skipped and
    named too.
    """
    for checkpoint in saved(folder):
        wrong = flaw(checkpoint) or _misplaced(checkpoint)
        if wrong is None and (checkpoint / BESIDE[0]).is_file():  # earlier versions did not write it
            other = alien(read_json(checkpoint / BESIDE[0], "config", "data", "order_hash"))
            wrong = other and f"it belongs to another run: {other}"
        if wrong is None:
            return checkpoint
        logger.warning("%s is not whole (%s) and is skipped", checkpoint, wrong)
    return None


def _misplaced(checkpoint: Path) -> str | None:
    step = read_json(checkpoint / STATE).get("global_step")
    return None if step == step_of(checkpoint) else f"it was written after step {step}"


def keep_beside(run: Path, checkpoint: Path) -> None:
    """Copy into a checkpoint the files of the run folder from which it continues."""
    for name in BESIDE:
        if (run / name).is_file():
            shutil.copyfile(run / name, checkpoint / name)


def prune(folder: Path, last: Path, keep: int) -> None:
    """Keep the newest `keep` complete checkpoints up to `last`, which has just been written."""
    past = [checkpoint for checkpoint in saved(folder) if step_of(checkpoint) <= step_of(last)]
    whole = [checkpoint for checkpoint in past if flaw(checkpoint, hashes=False) is None]
    for checkpoint in saved(folder):
        if checkpoint not in whole[:keep]:
            shutil.rmtree(checkpoint, ignore_errors=True)


def save_trained(model: nn.Module, file: Path) -> None:
    """Write the tensors of `model` that training has changed. Raises RunFailure if a value is not finite: no run could continue."""
    save_file(_finite(model), file)


def _finite(model: nn.Module) -> dict[str, Tensor]:
    tensors = _trained(model)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RunFailure(
                f"{name.removeprefix('trained.')} is not finite, so no checkpoint is written; continue from the one before "
                "with --resume, or start again with a lower --learning_rate or in float32"
            )
    return tensors


def restore_trained(model: nn.Module, file: Path) -> None:
    """Restore what `save_trained` wrote. Raises UserError if the tensors belong to another model or method."""
    _restore(model, load_file(file), file)


def _restore(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    parameters = dict(model.named_parameters())
    wanted = {f"trained.{name}": p.shape for name, p in parameters.items() if p.requires_grad}
    if {name: tensor.shape for name, tensor in tensors.items() if name.startswith("trained.")} != wanted:
        raise UserError(f"{file} belongs to another model or method; resume with the options of the first run")
    with torch.no_grad():
        for name in wanted:
            parameters[name.removeprefix("trained.")].copy_(tensors[name])
    restore_allocator(model, tensors)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """ "trained.NAME" for each trained tensor, plus AdaLoRA's statistics."""
    tensors = {f"trained.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    return {name: t.detach().cpu().contiguous() for name, t in (tensors | allocator_state(model)).items()}


def put(source: Path, file: Path) -> None:
    """Make `file` the content of `source`, complete or not at all, without a copy where the file system has hard links."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:  # no hard links here
            shutil.copyfile(source, temporary)
            _sync(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def keep_best(model: nn.Module, file: Path, step: int) -> None:
    """Write the trained tensors after `step` to `file`, in place of an older one; it appears complete or not at all. Raises RunFailure as
    `save_trained` does."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(_finite(model), temporary, f"step {step}")
        _sync(temporary)
        os.replace(temporary, file)
        _sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def restore_best(model: nn.Module, file: Path, step: int) -> None:
    """Give `model`, whose trained tensors are whole, those that `keep_best` wrote after `step`. Raises DamagedFile for others."""
    try:
        tensors = load_tensors(file, f"step {step}")
    except DamagedFile as error:
        raise DamagedFile(f"{error}; --resume takes the newest checkpoint that is whole") from None
    _restore(model, tensors, file)


def keep_start(model: nn.Module, file: Path, *, first: bool = True) -> None:
    """Write the initial values of `model` to `file` unless it exists. Every process calls this; rank 0 writes.

    Full fine-tuning starts from the base, so nothing is kept. A method without an initial copy starts from values that the
    seed determines.
    """
    if not _has_start(model):
        return
    with gathered(kept_parameters(model)):
        if not first or file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.tmp")
        try:
            save_tensors(_start(model), temporary)
            _sync(temporary)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def check_start(model: nn.Module, file: Path) -> None:
    """Raise UserError unless `model` starts, bit for bit, from what `keep_start` wrote: otherwise the run cannot continue."""
    if not file.exists() or not _has_start(model):
        return
    kept = read_start(file)
    with gathered(kept_parameters(model)):
        start = _start(model)
    different = sorted(start.keys() ^ kept.keys()) or [n for n in start if not torch.equal(start[n], kept[n])]
    if different:
        raise UserError(
            f"{file}: the initial value of {different[0]} differs from today's (another base model or library); the run "
            "cannot be continued, start it again with --overwrite"
        )


def _has_start(model: nn.Module) -> bool:
    return initial_copy(model) is not None and attached_to(model).method != "full"


def _start(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in initial_tensors(model).items()}


def read_start(file: Path) -> dict[str, Tensor]:
    """{parameter: initial value}. Raises DamagedFile if the file cannot be read or was altered."""
    try:
        return load_tensors(file)
    except DamagedFile as error:
        raise DamagedFile(f"{error}; put it back from a copy, or start again with --overwrite") from None


def initial_factors(file: Path) -> dict[str, tuple[Tensor, Tensor]] | None:
    """{layer of the original model: (A0, B0)} from a run's start; None if it has none or the file does not exist."""
    if not file.is_file():
        return None
    kept, factors = read_start(file), re.compile(r"(?:base_model\.model\.)?(.+)\.lora_A(0?)\.default\.weight")
    found = {name: factors.fullmatch(name) for name in kept}  # 0: of the delta form
    return {
        match[1]: (kept[name], kept[name.replace(f".lora_A{match[2]}.", f".lora_B{match[2]}.")])
        for name, match in found.items()
        if match
    } or None
