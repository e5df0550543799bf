"""Batches: shuffled rows of an activation store, the same for the same seed, from any step on.

Shards are taken in a random order, a window of several at a time, and rows are permuted inside the window; so rows
of one document land far apart while reading stays in large blocks. Windows are mapped, not read, and the mapping goes
with the window: memory does not grow with the store.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.store.store import ActivationStore, Rows, Shard

WINDOW_ROWS = 2**19
WINDOW_BYTES = 2**30
"""A window of the demo's size; wide sources have fewer rows in theirs."""


def window_rows(bytes_per_row: int) -> int:
    """Rows shuffled together at most, for rows of so many bytes."""
    return max(1, min(WINDOW_ROWS, WINDOW_BYTES // bytes_per_row))


class Piece(NamedTuple):
    """Consecutive rows of one shard."""

    shard: Shard
    first: int
    rows: int


@dataclass(frozen=True)
class Batches:
    """The training rows of a store, in batches of one size; what does not fill a batch is left out."""

    store: ActivationStore
    batch: int
    """Rows per batch."""
    seed: int
    window: int | None = None
    """Rows shuffled together at most; `window_rows` by default. A larger shard comes in several pieces."""

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the rows."""
        return self.store.count("train") // self.batch

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Rows]:
        """Batches of one pass, beginning with batch `first`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        skip, left = first * self.batch, self.per_epoch - first
        carried: Rows = {}
        for pieces in self._windows(generator):
            count = sum(piece.rows for piece in pieces)
            order = torch.randperm(count, generator=generator)
            if skip >= count:
                skip -= count
                continue
            window = _mapped(self.store, pieces)
            order, skip = order[skip:], 0
            while len(order):
                wanted = self.batch - _length(carried)
                rows = window.take(order[:wanted])
                order = order[wanted:]
                carried = {name: torch.cat([carried[name], rows[name]]) for name in rows} if carried else rows
                if _length(carried) == self.batch and left:
                    yield carried
                    carried, left = {}, left - 1

    def _windows(self, generator: torch.Generator) -> Iterator[list[Piece]]:
        most = self.window or window_rows(self.store.bytes_per_row)
        pieces = [piece for shard in self.store.shards("train") for piece in _cut(shard, most)]
        window: list[Piece] = []
        for index in torch.randperm(len(pieces), generator=generator).tolist():
            if window and sum(piece.rows for piece in window) + pieces[index].rows > most:
                yield window
                window = []
            window.append(pieces[index])
        if window:
            yield window


class Parts:
    """Several blocks of rows, addressed as one."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._begins = torch.tensor([0, *map(_length, parts)]).cumsum(0)

    def take(self, index: Tensor) -> Rows:
        """Copies of rows by index int64 [n]."""
        part = torch.searchsorted(self._begins, index, right=True) - 1
        names = self._parts[0].keys()
        out = {name: self._parts[0][name].new_empty(len(index), self._parts[0][name].shape[1]) for name in names}
        for number, rows in enumerate(self._parts):
            mine = torch.nonzero(part == number).squeeze(1)
            local = index[mine] - self._begins[number]
            for name in names:
                out[name].index_copy_(0, mine, rows[name].index_select(0, local))
        return out


def _mapped(store: ActivationStore, pieces: list[Piece]) -> Parts:
    whole = {shard: store.read(shard).rows for shard in {piece.shard for piece in pieces}}
    return Parts([{name: x[p.first : p.first + p.rows] for name, x in whole[p.shard].items()} for p in pieces])


def _cut(shard: Shard, most: int) -> list[Piece]:
    """A shard in pieces of at most so many rows."""
    return [Piece(shard, first, min(most, shard.rows - first)) for first in range(0, shard.rows, most)]


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values()))) if rows else 0
