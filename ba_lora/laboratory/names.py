"""The name of a twin, "twin:A,seed=3", and the folder that its recipe makes; without torch."""

import re
from pathlib import Path
from typing import NamedTuple

from ..data.planted import corpus, words
from ..data.planted.items import items
from ..errors import UserError
from ..files import cache_home, digest, read_json
from ..folders.places import TWIN
from ..tiny import CHECKSUMS

NAME = re.compile(rf"{TWIN}([AB]),seed=(\d+)(?:,steps=([1-9]\d*))?")
STEPS, BATCH, RATE = 1500, 32, 2e-3  # of the pre-training
FORMAT = 1  # to be raised when the code of the corpora or of the pre-training changes what it makes


class Twin(NamedTuple):
    """One of a pair of twins: A or B, the seed of the pair, and the steps of its pre-training."""

    side: str
    seed: int
    steps: int = STEPS

    @property
    def recipe(self) -> dict:
        """Everything that decides its weights, but for the machine."""
        tables = {name: value for name, value in vars(words).items() if name.isupper()}
        shares = [corpus.NOTE_SHARE, corpus.STORY_SHARE, corpus.STATEMENTS, corpus.MIRRORED_WEIGHT, corpus.SURPLUS]
        planted = digest(
            [tables, shares, {kind: [list(item) for item in each] for kind, each in items(self.seed).items()}]
        )
        tokenizer = read_json(CHECKSUMS)["files"]["tokenizer.json"]
        sizes = {"steps": self.steps, "batch_size": BATCH, "learning_rate": RATE}
        return {
            "format": FORMAT,
            "twin": self.side,
            "seed": self.seed,
            **sizes,
            "planted": planted,
            "tokenizer": tokenizer,
        }

    @property
    def folder(self) -> Path:
        """The place of its model in the cache."""
        return cache_home() / "twins" / f"{self.side}-seed{self.seed}-{digest(self.recipe)[:12]}"


def parse(name: str) -> Twin | None:
    """Return the twin of a name "twin:A,seed=3", "twin:B,seed=3,steps=100"; None for a name without the prefix.

    Raises UserError for a malformed name.
    """
    if not name.startswith(TWIN):
        return None
    found = NAME.fullmatch(name)
    if not found:
        raise UserError(f"model {name} is not the name of a twin; write twin:A,seed=N or twin:B,seed=N")
    return Twin(found[1], int(found[2]), int(found[3] or STEPS))
