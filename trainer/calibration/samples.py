"""Samples: evenly spaced rows of a store, copied into a new store after something has been done to them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from trainer.store.store import ActivationStore, Block, Rows, Split, StoredSource, StoreWriter

SHARD = 2**15
"""Rows per shard of a sample."""
Change = Callable[[Rows, int], Rows]
"""New rows from some old ones, the first of which is number so-and-so of the sample."""


def write_sample(
    store: ActivationStore, path: Path, sources: tuple[StoredSource, ...], *, rows: int, change: Change
) -> ActivationStore:
    """About `rows` training rows, and as large a share of the held-out ones, changed and written in bfloat16.

    Rows are taken at even distances, all of them when the store has no more than `rows`. The same call writes the same.
    """
    step = max(1, store.count("train") // rows)
    writer, number = StoreWriter(path, sources), 0
    splits: tuple[Split, ...] = ("train", "held_out")
    for split in splits:
        waiting: list[Rows] = []
        held, left = 0, rows if split == "train" else store.count("held_out")
        for some in _every(store.blocks(split), step):
            kept = {name: x[:left] for name, x in some.items()}
            count = len(next(iter(kept.values())))
            new = change(kept, number)
            waiting.append({name: x.to(torch.bfloat16) for name, x in new.items()})
            number, held, left = number + count, held + count, left - count
            if held >= SHARD:
                _write(writer, waiting, split)
                waiting, held = [], 0
        _write(writer, waiting, split)
    writer.finish(None, {})
    return ActivationStore.open(path)


def _every(blocks: Iterator[Block], step: int) -> Iterator[Rows]:
    """Every so many-th row of consecutive blocks."""
    skip = 0
    for block in blocks:
        count = len(next(iter(block.rows.values())))
        if skip < count:
            yield {name: _copy(x[skip::step]) for name, x in block.rows.items()}
        skip = (skip - count) % step if skip < count else skip - count


def _copy(x: Tensor) -> Tensor:
    # The block may be a mapping of a file.
    return x.clone()


def _write(writer: StoreWriter, waiting: list[Rows], split: Split) -> None:
    names = waiting[0] if waiting else ()
    rows = {name: torch.cat([part[name] for part in waiting]) for name in names}
    if rows and len(next(iter(rows.values()))):
        writer.add(rows, {}, split)
