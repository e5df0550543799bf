"""Copies evenly spaced rows of a store, transformed, into a new store."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from trainer.store.store import ActivationStore, RowBlock, Rows, Split, StoredSource, StoreWriter

SHARD = 2**15
"""Rows per shard of the new store."""
Transform = Callable[[Rows, int], Rows]
"""Maps rows of the sample and the index of the first of them to new rows."""


def write_sample(
    store: ActivationStore, path: Path, sources: tuple[StoredSource, ...], *, rows: int, transform: Transform
) -> ActivationStore:
    """Store at `path` of about `rows` training rows and the same share of the held-out rows, transformed, in bfloat16.

    Rows are evenly spaced; all are taken if the store has at most `rows`. Deterministic.
    """
    step = max(1, store.count("train") // rows)
    writer, number = StoreWriter(path, sources), 0
    splits: tuple[Split, ...] = ("train", "held_out")
    for split in splits:
        pending: list[Rows] = []
        held, left = 0, rows if split == "train" else store.count("held_out")
        for some in _every_nth_row(store.blocks(split), step):
            kept = {name: x[:left] for name, x in some.items()}
            count = len(next(iter(kept.values())))
            new = transform(kept, number)
            pending.append({name: x.to(torch.bfloat16) for name, x in new.items()})
            number, held, left = number + count, held + count, left - count
            if held >= SHARD:
                _write(writer, pending, split)
                pending, held = [], 0
        _write(writer, pending, split)
    writer.finish(None, {})
    return ActivationStore.open(path)


def _every_nth_row(blocks: Iterator[RowBlock], step: int) -> Iterator[Rows]:
    """Every `step`-th row of consecutive blocks."""
    skip = 0
    for block in blocks:
        count = len(next(iter(block.rows.values())))
        if skip < count:
            yield {name: _copy(x[skip::step]) for name, x in block.rows.items()}
        skip = (skip - count) % step if skip < count else skip - count


def _copy(x: Tensor) -> Tensor:
    # The block may map a file.
    return x.clone()


def _write(writer: StoreWriter, pending: list[Rows], split: Split) -> None:
    names = pending[0] if pending else ()
    rows = {name: torch.cat([part[name] for part in pending]) for name in names}
    if rows and len(next(iter(rows.values()))):
        writer.add(rows, {}, split)
