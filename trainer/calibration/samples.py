"""Copies evenly spaced rows of a store, transformed, into a new store."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
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
    """Store at `path` of about `rows` training rows and all held-out rows, transformed, in bfloat16, with their groups.

    Training rows are evenly spaced; all are taken if the store has at most `rows`. Claims are judged on held-out rows,
    which cost no training. Deterministic.
    """
    writer, number = StoreWriter(path, sources), 0
    wanted: dict[Split, int] = {"train": rows, "held_out": store.count("held_out")}
    for split, most in wanted.items():
        pending: list[RowBlock] = []
        held, left = 0, most
        for some in _every_nth_row(store.blocks(split), max(1, store.count(split) // max(most, 1))):
            kept = {name: x[:left] for name, x in some.rows.items()}
            count = len(next(iter(kept.values())))
            new = {name: x.to(torch.bfloat16) for name, x in transform(kept, number).items()}
            sequence = None if some.sequence is None else some.sequence[:left]
            pending.append(RowBlock(new, sequence, None, None))
            number, held, left = number + count, held + count, left - count
            if held >= SHARD:
                _write(writer, pending, split)
                pending, held = [], 0
        _write(writer, pending, split)
    writer.finish(_groups(store), {})
    return ActivationStore.open(path)


def _groups(store: ActivationStore) -> pa.Table | None:
    """The group of every sequence of a store, as a table of sequences without texts."""
    groups = store.document_groups()
    if groups is None:
        return None
    sequence = np.arange(len(groups), dtype=np.int32)
    return pa.table({"sequence": sequence, "document_group": groups.astype(np.int32)})


def _every_nth_row(blocks: Iterator[RowBlock], step: int) -> Iterator[RowBlock]:
    """Every `step`-th row of consecutive blocks, with its sequence."""
    skip = 0
    for block in blocks:
        count = len(next(iter(block.rows.values())))
        if skip < count:
            rows = {name: _copy(x[skip::step]) for name, x in block.rows.items()}
            sequence = None if block.sequence is None else _copy(block.sequence[skip::step])
            yield RowBlock(rows, sequence, None, None)
        skip = (skip - count) % step if skip < count else skip - count


def _copy(x: Tensor) -> Tensor:
    # The block may map a file.
    return x.clone()


def _write(writer: StoreWriter, pending: list[RowBlock], split: Split) -> None:
    if not pending:
        return
    rows = {name: torch.cat([part.rows[name] for part in pending]) for name in pending[0].rows}
    sequences = [part.sequence for part in pending if part.sequence is not None]
    locations = {"sequence": torch.cat(sequences)} if len(sequences) == len(pending) else {}
    writer.add(rows, locations, split)
