"""The order of the samples, which depends on the seed alone."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class FixedOrder(Sampler):
    """A permutation of range(count) per epoch that depends only on the seed and the epoch, not on the method.

    With `lengths` (one per sample) it forms micro-batches of similar length: the permutation is cut into blocks of GROUPED
    effective batches; each block is sorted by length and cut into micro-batches, which are shuffled. A shorter one stays last,
    so that the data loader's batch boundaries stay the same for any number of processes.
    """

    GROUPED = 50

    def __init__(
        self,
        count: int,
        seed: int,
        lengths: Sequence[int] | None = None,
        micro_batch_size: int = 1,
        effective_batch_size: int = 1,
    ):
        self.count, self.seed, self.epoch = count, seed, 0
        self.lengths, self.micro, self.block = lengths, micro_batch_size, self.GROUPED * effective_batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch))

    def order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        if self.lengths is None:
            return order
        grouped = []
        for start in range(0, self.count, self.block):
            block = sorted(order[start : start + self.block], key=lambda sample: self.lengths[sample])
            batches = [block[cut : cut + self.micro] for cut in range(0, len(block), self.micro)]
            short = [batches.pop()] if len(batches[-1]) < self.micro else []
            shuffled = torch.randperm(len(batches), generator=generator).tolist()
            grouped += [sample for batch in [*(batches[number] for number in shuffled), *short] for sample in batch]
        return grouped
