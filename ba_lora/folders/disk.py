"""The disk behind a folder: whether it can be written, and errors that name the folder if it cannot or is full."""

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from ..errors import RunFailure, UserError
from ..files import remove_leftovers

# In messages of errors without a number; the last is torch.save's, which hides the cause.
FULL = ("No space left on device", "Disk quota exceeded", "inline_container")
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EIO)
TRIED = 4096  # bytes


def is_full(error: BaseException) -> bool:
    """Return True if `error` says that a disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, RuntimeError | SafetensorError) and any(sign in str(error) for sign in FULL)


def full(folder: Path) -> str:
    """Say that the disk of `folder`, which need not exist, is full."""
    place = existing(folder)
    return f"no space is left on the disk ({place}: {shutil.disk_usage(place).free / 1e6:.1f} MB free); free some space"


def existing(folder: str | os.PathLike) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    folder = Path(folder).absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


@contextmanager
def writing(what: str, folder: str | os.PathLike, remedy: str) -> Iterator[None]:
    """Turn the failure to write a cache inside the block into a RunFailure that names the cache and its folder.

    Otherwise a full disk would be looked for at the run's own folder. remedy: how to use another folder.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_full(error):
            reason = full(Path(folder))
        elif isinstance(error, OSError) and error.errno in UNWRITABLE:
            reason = error.strerror
        else:
            raise
        raise RunFailure(f"{what} {folder} cannot be written: {reason}, or {remedy}") from error


@contextmanager
def cached(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes out of `folder`, a part of the cache folder, during the block; the lock file stays beside it.

    What a killed process left of it under a temporary name is removed first. what: the content, for the RunFailure of `writing`.
    """
    with writing(what, folder.parent, "set BA_LORA_CACHE to a folder that can be written"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            remove_leftovers(folder.parent, [glob.escape(folder.name)])
            yield


def refuse_unwritable(folder: str | os.PathLike, option: str = "--output_dir") -> None:
    """Raise UserError unless `folder`, or the nearest folder above it that exists, can be written. Leaves nothing behind."""
    try:
        place = existing(folder)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(TRIED))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{option} {folder} cannot be written ({reason}); name another folder") from None
