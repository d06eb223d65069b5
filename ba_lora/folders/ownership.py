"""Ownership of a folder, with one writer at a time: the checks before a command writes into a folder.

A command writes into a folder that does not exist, is empty, or was made by this project as the same kind of output. It refuses
any other folder, even with --overwrite or --resume, and leaves it unchanged. A folder proves its kind by the content of a file
that only this project writes (`KINDS`); a name alone proves nothing.

While a command writes, the folder also holds MARKER, which names the kind, the process and its machine. The marker is locked, and
the kernel frees the lock however the process ends. The marker is removed at the end, unless nothing else proves the kind.
"""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError
from ..files import atomic_folder, bears, remove_own
from .kinds import EVALUATION, KINDS, MADE_BY, MARKER, RUN, is_ours, is_part, is_proven, read_marker

logger = logging.getLogger(__name__)

MARKER_BYTES = 512
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # file systems without locks


def refuse_foreign(folder: str | Path, kind: str, option: str = "--output_dir", passed: Collection[str] = ()) -> None:
    """Raise UserError unless `folder` does not exist, is empty, or is this project's output of that kind. Changes nothing.

    passed: names of entries that do not count, such as the user's own input.
    """
    folder = Path(folder)
    try:
        if folder.is_symlink() and not folder.exists():
            raise UserError(f"{option} {folder} is a link to nothing; name another folder")
        if not folder.exists():
            return
        if not folder.is_dir():
            raise UserError(f"{option} {folder} is a file; name a folder")
        # before the proofs: another process may prove the folder while this one looks
        names = sorted(entry.name for entry in folder.iterdir() if not _is_mere_marker(entry))
        if is_ours(folder, kind):
            return
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be opened ({error.strerror}); name another folder") from None
    foreign = [name for name in names if not bears(name, (*KINDS[kind].passed, *passed))]
    if not foreign:
        return
    own = [pattern for pattern, _ in KINDS[kind].proofs if pattern in foreign and (folder / pattern).is_file()]
    why = f"; its {own[0]} was not written by this project, or is damaged" if own else ""
    raise UserError(
        f"{option} {folder} is not empty and holds no {KINDS[kind].what} ({foreign[0]}, ...){why}; name another folder"
    )


def _is_mere_marker(entry: Path) -> bool:
    """Return True for a marker of any kind, or an empty one that a process has just created and not yet written."""
    if entry.name != MARKER or entry.is_symlink():
        return False
    return entry.stat().st_size == 0 or (read_marker(entry.parent) or {}).get("made_by") == MADE_BY


@contextmanager
def claimed(
    folder: str | Path,
    kind: str,
    option: str = "--output_dir",
    *,
    alone: bool = True,
    writes: bool = True,
    passed: Collection[str] = (),
) -> Iterator[Path]:
    """Reserve `folder` for this process while the block runs; a missing folder is created.

    A block that writes nothing leaves nothing behind. alone: no other process may claim the folder meanwhile; False for short
    writes. writes: False only checks, for the other ranks of a run. Raises UserError as `refuse_foreign` does, and if another
    process has the folder.
    """
    folder = Path(folder)
    refuse_foreign(folder, kind, option, passed)
    if not writes or (not alone and is_proven(folder, kind)):
        yield folder
        return
    place, owner = Path(os.path.abspath(folder)), os.getpid()
    made = [each for each in (place, *place.parents) if not each.exists()]  # deepest first
    held = _lock(place, kind, f"{option} {folder}", alone)
    try:
        yield folder
    finally:
        if os.getpid() == owner:  # not in a forked child
            _release(place, kind, held)
            for each in made:
                with suppress(OSError):  # no longer empty
                    each.rmdir()


_held: set[int] = set()  # descriptors of this process, which its forked children close: a killed parent frees its locks


def _close_all() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_all)


def _lock(place: Path, kind: str, named: str, alone: bool) -> int | None:
    """The descriptor of the locked marker in `place`; None if another process holds it and `alone` is False."""
    while True:
        try:
            place.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(place / MARKER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue  # another process has just ended and removed the folder it had made
        except OSError as error:
            raise UserError(f"{named} cannot be written ({error.strerror}); name another folder") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                logger.warning("%s: this file system has no locks, so a second process is not kept out", named)
            else:
                os.close(descriptor)
                if not alone:
                    return None
                raise UserError(
                    f"{named} is in use by {_holder(place)}; wait until it ends, or name another folder"
                ) from None
        if _is_marker(descriptor, place):
            break
        os.close(descriptor)  # its owner has just removed it
    try:
        _write(descriptor, {"made_by": MADE_BY, "kind": kind, "pid": os.getpid(), "host": socket.gethostname()})
    except OSError as error:
        os.close(descriptor)
        raise UserError(
            f"{named} cannot be written ({error.strerror}); free some space, or name another folder"
        ) from None
    _held.add(descriptor)
    return descriptor


def _is_marker(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(place / MARKER))
    except FileNotFoundError:
        return False


def _holder(place: Path) -> str:
    marked = read_marker(place) or {}
    return f"process {marked['pid']} on {marked['host']}" if {"pid", "host"} <= marked.keys() else "another process"


def _release(place: Path, kind: str, held: int | None) -> None:
    """Free the lock. The marker goes too, unless the folder has content and nothing else proves its kind."""
    if held is None:
        return
    try:
        if _is_marker(held, place):
            if is_proven(place, kind) or os.listdir(place) == [MARKER]:
                os.unlink(place / MARKER)
            else:
                _write(held, {"made_by": MADE_BY, "kind": kind})
    except OSError as error:  # a full disk, or a missing folder: what was written stays
        logger.warning("%s: %s", place / MARKER, error.strerror)
    finally:
        _held.discard(held)
        os.close(held)


def _write(descriptor: int, content: dict) -> None:
    """Write the marker in one call and at a fixed length, so that readers see either the old content or the new."""
    os.pwrite(descriptor, json.dumps(content).encode().ljust(MARKER_BYTES - 1) + b"\n", 0)


@contextmanager
def replaced(folder: str | Path, kind: str, own: Collection[str], option: str = "the folder") -> Iterator[Path]:
    """`atomic_folder` for a folder that is new, empty or this project's; afterwards it can be recognised as such."""
    refuse_foreign(folder, kind, option)
    with atomic_folder(folder, own) as place:
        yield place
        if not is_part(Path(folder), kind):
            mark(place, kind)


def remove_run(folder: Path) -> None:
    """Remove the parts of a run, and nothing else, from `folder`. An evaluation folder with other files in it is marked as ours.

    Raises UserError, before anything is removed, if another process is writing an evaluation of the run.
    """
    walk = () if (folder / "eval").is_symlink() else os.walk(folder / "eval")
    places = [Path(place) for place, _, _ in walk]
    evaluations = [place for place in places if is_ours(place, "evaluation")]
    for place in places:
        refuse_busy(place)
    for place in reversed(evaluations):  # deepest first
        remove_own(place, EVALUATION)
        if place.is_dir():
            mark(place, "evaluation")
    for name, names in RUN.items():
        remove_own(folder / name, names)


def refuse_busy(place: Path) -> None:
    """Raise UserError if another process has claimed `place`. Changes nothing."""
    try:
        descriptor = os.open(place / MARKER, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return  # no marker
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UserError(f"{place} is in use by {_holder(place)}; wait until it ends") from None
    finally:
        os.close(descriptor)


def mark(folder: Path, kind: str) -> None:
    """Write the marker into `folder` if nothing else proves its kind."""
    if not is_proven(folder, kind):
        (folder / MARKER).write_text(json.dumps({"made_by": MADE_BY, "kind": kind}) + "\n", encoding="utf-8")
