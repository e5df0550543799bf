"""Shuffled batches of an activation store, reproducible by seed and resumable at any step.

Shards are read in random order, several per window, and rows are permuted inside the window. Rows of one document end
up far apart, while reads stay large. Windows are memory-mapped and unmapped one after the other, so that memory does
not grow with the store.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.store.store import ActivationStore, Rows, Shard

WINDOW_ROWS = 2**19
WINDOW_BYTES = 2**30
"""Size limits of a window; wide sources reach the limit in bytes first."""


def window_rows(bytes_per_row: int) -> int:
    """Maximum number of rows that are shuffled together."""
    return max(1, min(WINDOW_ROWS, WINDOW_BYTES // bytes_per_row))


class ShardSlice(NamedTuple):
    """Consecutive rows of one shard."""

    shard: Shard
    first: int
    rows: int


@dataclass(frozen=True)
class Batches:
    """The training rows of a store in batches of equal size; an incomplete last batch is dropped."""

    store: ActivationStore
    batch: int
    """Rows per batch."""
    seed: int
    window: int | None = None
    """Maximum number of rows shuffled together; `window_rows` by default. Larger shards are split."""

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the rows."""
        return self.store.count("train") // self.batch

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Rows]:
        """Batches of one pass, from batch `first` on."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        skip, left = first * self.batch, self.per_epoch - first
        carried: Rows = {}
        for slices in self._windows(generator):
            count = sum(one.rows for one in slices)
            order = torch.randperm(count, generator=generator)
            if skip >= count:
                skip -= count
                continue
            window = _map_rows(self.store, slices)
            order, skip = order[skip:], 0
            while len(order):
                missing = self.batch - _row_count(carried)
                rows = window.take(order[:missing])
                order = order[missing:]
                carried = {name: torch.cat([carried[name], rows[name]]) for name in rows} if carried else rows
                if _row_count(carried) == self.batch and left:
                    yield carried
                    carried, left = {}, left - 1

    def _windows(self, generator: torch.Generator) -> Iterator[list[ShardSlice]]:
        max_rows = self.window or window_rows(self.store.bytes_per_row)
        slices = [one for shard in self.store.shards("train") for one in _split(shard, max_rows)]
        window: list[ShardSlice] = []
        for index in torch.randperm(len(slices), generator=generator).tolist():
            if window and sum(one.rows for one in window) + slices[index].rows > max_rows:
                yield window
                window = []
            window.append(slices[index])
        if window:
            yield window


class ConcatenatedRows:
    """Several row blocks, indexed as one."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._starts = torch.tensor([0, *map(_row_count, parts)]).cumsum(0)

    def take(self, index: Tensor) -> Rows:
        """Copies of the rows at an int64 index [n], per source [n, width]."""
        part = torch.searchsorted(self._starts, index, right=True) - 1
        names = self._parts[0].keys()
        out = {name: self._parts[0][name].new_empty(len(index), self._parts[0][name].shape[1]) for name in names}
        for number, rows in enumerate(self._parts):
            selected = torch.nonzero(part == number).squeeze(1)
            local = index[selected] - self._starts[number]
            for name in names:
                out[name].index_copy_(0, selected, rows[name].index_select(0, local))
        return out


def _map_rows(store: ActivationStore, slices: list[ShardSlice]) -> ConcatenatedRows:
    whole = {shard: store.read(shard).rows for shard in {one.shard for one in slices}}
    return ConcatenatedRows(
        [{name: x[p.first : p.first + p.rows] for name, x in whole[p.shard].items()} for p in slices]
    )


def _split(shard: Shard, max_rows: int) -> list[ShardSlice]:
    """Split a shard into slices of at most `max_rows` rows."""
    return [ShardSlice(shard, first, min(max_rows, shard.rows - first)) for first in range(0, shard.rows, max_rows)]


def _row_count(rows: Rows) -> int:
    return len(next(iter(rows.values()))) if rows else 0
