"""Holds normalised activations of whole sequences in memory, for statistics that need rows again and again.

Axes: R rows of the sample, W width of a source.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.rows.cross_fit import TwoFold
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.store.store import ActivationStore, RowBlock

MAX_BYTES = 2**29
"""Size limit of the sample; of a larger store, every n-th sequence is taken."""
CLUSTER_ROWS = 256
"""Consecutive rows that count as one document in a store without texts."""


@dataclass(frozen=True)
class RowSample:
    """Rows of a store, in stored order."""

    rows: dict[str, Tensor]
    """Normalised activations by source, bf16 [R, W]."""
    fold: np.ndarray
    """Fold of cross-fitting of each row, 0 or 1 [R]."""
    cluster: np.ndarray
    """Number of each row's document, from 0, int64 [R]: rows of one document are not independent."""
    index: np.ndarray
    """Index in the sample of each row of the store, int64; -1 for rows that are not in it."""

    @property
    def size(self) -> int:
        """Rows in the sample."""
        return len(self.fold)

    @property
    def clusters(self) -> int:
        """Documents in the sample."""
        return int(self.cluster.max(initial=-1)) + 1

    def select(self, row: np.ndarray) -> np.ndarray:
        """Indices in the sample of some rows of the store, without those that are not in it."""
        found = self.index[row]
        selected: np.ndarray = found[found >= 0]
        return selected


def sample_rows(store: ActivationStore, crosscoder: Crosscoder, *, max_bytes: int = MAX_BYTES) -> RowSample:
    """Rows of a store in memory, at most `max_bytes` of them."""
    folds, documents = TwoFold.from_store(store), _documents(store)
    step = max(1, -(-store.manifest.rows * sum(crosscoder.widths.values()) * 2 // max_bytes))
    index = np.full(store.manifest.rows, -1, np.int64)
    # Room for somewhat more than the expected share: units differ in size.
    room = store.manifest.rows if step == 1 else int(store.manifest.rows / step * 1.2) + 8 * CLUSTER_ROWS
    rows = {name: torch.empty(room, width, dtype=torch.bfloat16) for name, width in crosscoder.widths.items()}
    fold, cluster = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int64)
    first = kept = 0
    for block in store.blocks():
        unit = _unit(block, first)
        keep = torch.nonzero(unit % step == 0).squeeze(1)[: room - kept]
        some = slice(kept, kept + len(keep))
        for name, x in crosscoder.normalise(_take(block, keep)).items():
            rows[name][some] = x.to("cpu", torch.bfloat16)
        fold[some] = folds.folds_of_block(block, first)[keep]
        cluster[some] = (unit if documents is None or block.sequence is None else documents[block.sequence.long()])[
            keep
        ]
        index[first + keep.numpy()] = np.arange(kept, kept + len(keep))
        first, kept = first + len(unit), kept + len(keep)
    _, numbered = np.unique(cluster[:kept].numpy(), return_inverse=True)
    return RowSample({name: x[:kept] for name, x in rows.items()}, fold[:kept].numpy(), numbered, index)


def _documents(store: ActivationStore) -> Tensor | None:
    if "document" not in store.sequence_columns():
        return None
    table = store.sequences(columns=["document"])
    return None if table is None else torch.from_numpy(np.array(table["document"].to_numpy(), np.int64))


def _unit(block: RowBlock, first: int) -> Tensor:
    """The sequence of each row, or a number for every CLUSTER_ROWS rows; the sample takes whole units."""
    if block.sequence is not None:
        return block.sequence.long()
    count = len(next(iter(block.rows.values())))
    return torch.arange(first, first + count) // CLUSTER_ROWS


def _take(block: RowBlock, keep: Tensor) -> dict[str, Tensor]:
    whole = len(keep) == len(next(iter(block.rows.values())))
    return {name: x if whole else x[keep] for name, x in block.rows.items()}
