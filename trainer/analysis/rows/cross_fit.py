"""Assigns rows to the two folds of cross-fitting, whole groups of documents at a time.

A readout is fitted on one fold and scored on the other. Neighbouring rows of a text are so strongly correlated that
a split by rows would leak, and so would one by documents where they are parts of one conversation or copies.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.store.store import ActivationStore, RowBlock


@dataclass(frozen=True)
class TwoFold:
    """Fold of each row of a store."""

    fold_of_sequence: Tensor | None
    """Fold of each sequence, 0 or 1, int64 [sequences]; None if the folds are ranges of rows."""
    rows: int
    """Rows in the store."""

    @classmethod
    def from_store(cls, store: ActivationStore) -> "TwoFold":
        """Split the groups pseudorandomly into two folds of equally many; the split is always the same.

        A store without documents, or with a single group, is cut in the middle of its rows.
        """
        groups = store.document_groups()
        fold = fold_of_groups(np.zeros(0, np.int64) if groups is None else groups)
        return cls(torch.from_numpy(fold) if fold.any() else None, store.manifest.rows)

    def folds_of_block(self, block: RowBlock, first: int) -> Tensor:
        """Fold of each row of a block that begins at row `first` of the store, int64 [n]."""
        if self.fold_of_sequence is None or block.sequence is None:
            count = len(next(iter(block.rows.values())))
            return (torch.arange(first, first + count) >= self.rows // 2).long()
        # Sequences out of range are reported later, by `check_row_order`.
        return self.fold_of_sequence[block.sequence.long().clamp(0, len(self.fold_of_sequence) - 1)]


def fold_of_groups(group: np.ndarray) -> np.ndarray:
    """Fold of each sequence, 0 or 1, int64 [n], from its group of documents [n]; all 0 for a single group."""
    groups, group_of_sequence = np.unique(group, return_inverse=True)
    rank = np.empty(len(groups), np.int64)
    rank[np.argsort(_hash(groups), kind="stable")] = np.arange(len(groups))
    fold: np.ndarray = (rank < len(groups) // 2).astype(np.int64)[group_of_sequence]
    return fold


def _hash(number: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), uint64 [n]; decorrelates neighbouring numbers."""
    x = number.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
