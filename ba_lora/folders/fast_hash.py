"""A fast hash of large data, to detect damage and changed inputs. It does not protect against forgery.

It is XXH3 if the package xxhash is installed, otherwise BLAKE2b, which takes several times as long. Values of BLAKE2b begin with
MARK, so that the two kinds are never taken for each other.
"""

import hashlib
import logging
from functools import cache

try:
    import xxhash
except ImportError:
    xxhash = None

logger = logging.getLogger(__name__)

MARK = "blake2b-"


class _Blake2b:
    """BLAKE2b with the methods of xxhash's objects."""

    def __init__(self, data=b"", size: int = 16):
        self._state = hashlib.blake2b(data, digest_size=size)
        self.update = self._state.update

    def hexdigest(self) -> str:
        return MARK + self._state.hexdigest()


def new(data=b""):
    """A hash of 128 bits that takes more data by `update` and ends with `hexdigest`."""
    return _Blake2b(data) if xxhash is None else xxhash.xxh3_128(data)


def short(data: bytes) -> str:
    """The hash of 64 bits (hex) of a small piece of data."""
    return _Blake2b(data, 8).hexdigest() if xxhash is None else xxhash.xxh3_64_hexdigest(data)


def differ(recorded, made) -> bool:
    """Return True if a recorded value and one made now are not equal. Two hashes of different kinds cannot be compared: False,
    with a warning once per process."""
    if isinstance(recorded, str) and isinstance(made, str) and recorded.startswith(MARK) != made.startswith(MARK):
        _warn()
        return False
    return recorded != made


@cache
def _warn() -> None:
    has = "lacks" if xxhash is None else "has"
    logger.warning(
        "some checksums were written where the package xxhash was %s, and this environment %s it; these are not "
        "compared",
        "installed" if xxhash is None else "missing",
        has,
    )
