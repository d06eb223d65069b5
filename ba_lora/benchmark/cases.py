"""The sizes and the contestants of a comparison, by name. Imports no large library, so that --help answers at once."""

import importlib.util
from dataclasses import dataclass
from typing import NamedTuple

from ..objective.settings import REGULARIZERS


@dataclass(frozen=True)
class Case:
    """The sizes of one comparison."""

    vocabulary: int  # V; a real `model` and a `body` have their own
    batch: int = 4  # samples per micro-batch
    length: int = 256  # tokens per sample
    response: float = 0.5  # share of the tokens that is trained: the last ones
    hidden: int = 512  # d
    layers: int | None = 8  # of a body: None = all
    rank: int = 32
    preset: str = "iclr"
    svd_k: int | None = None  # None: the preset's
    model: str | None = None  # a real model instead of the random one
    body: str | None = None  # a random model with the sizes of this one
    start: str = "pissa_niter_4"  # the randomised start: sufficient here, and minutes faster on a real model
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1

    @property
    def rows(self) -> int:
        """Trained tokens of the micro-batch; no token precedes a sample's first one, so it is not predicted."""
        return self.batch * min(round(self.length * self.response), self.length - 1)


class Contestant(NamedTuple):
    """A way to train, which `contestants.PREPARE` makes. bare: the contestant that is the same run with all weights 0.

    package: what it needs beside this project's requirements; it is left out where that is not installed. form: of the start of the
    factors that it trains (methods.names.FORMS).
    """

    what: str
    bare: str
    package: str | None = None
    form: str = "residual"


CONTESTANTS = {
    "pissa": Contestant("plain PiSSA, stock transformers loss", "pissa"),
    "published": Contestant("the published algorithm, second model", "pissa"),
    "dense-bare": Contestant("ours, dense, all weights 0", "dense-bare"),
    "dense": Contestant("ours, dense", "dense-bare"),
    "floor": Contestant("PiSSA, loss on response rows only", "floor"),
    **{each.name: Contestant(f"ours, {each.name} alone", "floor") for each in REGULARIZERS},
    "ours": Contestant("ours", "floor"),
    "share-0.5": Contestant("ours, teacher on half of the samples", "floor"),
    "share-0.25": Contestant("ours, teacher on a quarter of them", "floor"),
    "cached": Contestant("ours, cached teacher", "floor"),
    "sketch": Contestant("ours, cached sketch of the teacher", "floor"),
    "delta-bare": Contestant("ours, delta form, all weights 0", "delta-bare", form="delta"),
    "delta": Contestant("ours, delta form", "delta-bare", form="delta"),
    "liger": Contestant("task and consistency by Liger's JSD", "floor", package="liger_kernel"),
}
SMALLEST_VOCABULARY = 32  # large enough for the 20 classes of the iclr preset's entropy
BASE = "pissa"  # the denominator of every ratio
OF_A_BODY = (BASE, "published", "floor", "ours", "cached", "liger")  # unless others are asked for
RANDOM = "random"  # a start of the factors without a decomposition


def is_here(name: str) -> bool:
    """Return True if what the contestant `name` needs is installed."""
    package = CONTESTANTS[name].package
    return package is None or importlib.util.find_spec(package) is not None
