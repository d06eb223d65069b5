"""Encoded samples in flat arrays: the tokens of all samples one after another, which a file holds and memory maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

FILES = ("*.npy",)
VALUE = "value_"  # a file with one number per sample begins like this


class Samples(Sequence):
    """Samples by number: samples[i] is {name: a list of integers, or one number}, as the collators take them.

    ragged: {name: flat integers of all samples}, each cut at `offsets` (count + 1). values: {name: one number per sample}.
    """

    def __init__(self, ragged: Mapping[str, np.ndarray], offsets: np.ndarray, values: Mapping[str, np.ndarray] = {}):
        self.ragged, self.offsets, self.values = dict(ragged), offsets, dict(values)

    @classmethod
    def of(cls, columns: Mapping[str, Sequence]) -> "Samples":
        """From {name: one entry per sample}: a list of integers, as long as the sample's other lists, or a number."""
        ragged, values, offsets = {}, {}, np.zeros(1, np.int64)
        for name, column in columns.items():
            if len(column) and not isinstance(column[0], list):
                values[name] = np.asarray(column)
                continue
            offsets = np.cumsum([0, *map(len, column)], dtype=np.int64)
            ragged[name] = np.fromiter((token for row in column for token in row), np.int32, offsets[-1])
        return cls(ragged, offsets, values)

    @classmethod
    def from_list(cls, samples: Sequence[Mapping]) -> "Samples":
        """From dicts with the same keys."""
        return cls.of({name: [sample[name] for sample in samples] for name in samples[0]})

    def save(self, folder: Path) -> None:
        """Write one .npy file per array."""
        values = {VALUE + name: array for name, array in self.values.items()}
        for name, array in (self.ragged | values | {"offsets": self.offsets}).items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "Samples":
        """Memory-map what `save` wrote. Raises OSError or ValueError for files that it did not write."""
        found = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in sorted(folder.glob("*.npy"))}
        values = {name.removeprefix(VALUE): found.pop(name) for name in list(found) if name.startswith(VALUE)}
        if "offsets" not in found:
            raise ValueError("offsets.npy is missing")
        return cls(found, found.pop("offsets"), values)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample (count,)."""
        return np.diff(self.offsets)

    def tokens(self, number: int) -> np.ndarray:
        """The token ids of a sample, without a copy."""
        return self.ragged["input_ids"][self.offsets[number] : self.offsets[number + 1]]

    def numbered(self) -> "Samples":
        """The same samples, each with its own number as "sample"."""
        return Samples(self.ragged, self.offsets, self.values | {"sample": np.arange(len(self))})

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> dict:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        part = slice(self.offsets[number], self.offsets[number + 1])
        sample = {name: array[part].tolist() for name, array in self.ragged.items()}
        return sample | {name: array[number].item() for name, array in self.values.items()}


class Selection(Sequence):
    """Some samples of `samples`, by their numbers, without a copy."""

    def __init__(self, samples: Samples, numbers: Sequence[int]):
        self.samples, self.numbers = samples, np.asarray(numbers, np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample (count,)."""
        return self.samples.lengths[self.numbers]

    def tokens(self, number: int) -> np.ndarray:
        """The token ids of a sample, without a copy."""
        return self.samples.tokens(self.numbers[number])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> dict:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        return self.samples[int(self.numbers[number])]
