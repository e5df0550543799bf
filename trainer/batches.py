"""Batches: shuffled rows of an activation store, the same for the same seed, from any step on.

Shards are taken in a random order, a window of several at a time, and rows are permuted inside the window; so rows
of one document land far apart while reading stays in large blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.activation_store import ActivationStore, Rows, Shard


@dataclass(frozen=True)
class Batches:
    """The training rows of a store, in batches of one size; what does not fill a batch is left out."""

    store: ActivationStore
    batch: int
    """Rows per batch."""
    seed: int
    window: int = 2**19
    """Rows shuffled together at most, unless one shard is larger."""

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the rows."""
        return self.store.count("train") // self.batch

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Rows]:
        """Batches of one pass, beginning with batch `first`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        skip, left = first * self.batch, self.per_epoch - first
        carried: Rows = {}
        for shards in self._windows(generator):
            count = sum(shard.rows for shard in shards)
            order = torch.randperm(count, generator=generator)
            if skip >= count:
                skip -= count
                continue
            window = _Window(self.store, shards)
            order, skip = order[skip:], 0
            while len(order):
                wanted = self.batch - _length(carried)
                rows = window.take(order[:wanted])
                order = order[wanted:]
                carried = {name: torch.cat([carried[name], rows[name]]) for name in rows} if carried else rows
                if _length(carried) == self.batch and left:
                    yield carried
                    carried, left = {}, left - 1

    def _windows(self, generator: torch.Generator) -> Iterator[list[Shard]]:
        shards = self.store.shards("train")
        window: list[Shard] = []
        for index in torch.randperm(len(shards), generator=generator).tolist():
            if window and sum(shard.rows for shard in window) + shards[index].rows > self.window:
                yield window
                window = []
            window.append(shards[index])
        if window:
            yield window


class _Window:
    """Several mapped shards, addressed as one."""

    def __init__(self, store: ActivationStore, shards: list[Shard]) -> None:
        self._parts = [store.read(shard).rows for shard in shards]
        self._begins = torch.tensor([0, *(shard.rows for shard in shards)]).cumsum(0)

    def take(self, index: Tensor) -> Rows:
        """Rows by index int64 [n]."""
        part = torch.searchsorted(self._begins, index, right=True) - 1
        names = self._parts[0].keys()
        out = {name: self._parts[0][name].new_empty(len(index), self._parts[0][name].shape[1]) for name in names}
        for number, rows in enumerate(self._parts):
            mine = torch.nonzero(part == number).squeeze(1)
            local = index[mine] - self._begins[number]
            for name in names:
                out[name].index_copy_(0, mine, rows[name].index_select(0, local))
        return out


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values()))) if rows else 0
