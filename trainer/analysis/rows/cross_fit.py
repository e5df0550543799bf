"""Halves: every row belongs to one of two halves, and all rows of a document to the same.

What is fitted on one half and scored on the other has never seen the documents it is scored on: neighbouring rows
say so much about each other that halves of rows would not be held out at all.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.store.store import ActivationStore, Block


@dataclass(frozen=True)
class TwoFold:
    """Which half each row of a store belongs to."""

    of_sequence: Tensor | None
    """Half of each sequence, 0 or 1, int64 [sequences]; None when the halves are ranges of rows."""
    rows: int
    """Rows in the store."""

    @classmethod
    def of(cls, store: ActivationStore) -> "TwoFold":
        """Halves of about as many documents, in random order but always the same; ranges of rows without documents.

        A store with a single document is cut in the middle too.
        """
        table = store.sequences(columns=["document"]) if "document" in store.sequence_columns() else None
        document = np.zeros(0, np.int64) if table is None else table["document"].to_numpy()
        half = half_of_documents(document)
        return cls(torch.from_numpy(half) if half.any() else None, store.manifest.rows)

    def of_block(self, block: Block, first: int) -> Tensor:
        """Half of each row of a block whose first row is number `first` of the store, int64 [n]."""
        if self.of_sequence is None or block.sequence is None:
            count = len(next(iter(block.rows.values())))
            return (torch.arange(first, first + count) >= self.rows // 2).long()
        # A row that names a sequence there is not is refused later, where it can be said which.
        return self.of_sequence[block.sequence.long().clamp(0, len(self.of_sequence) - 1)]


def half_of_documents(document: np.ndarray) -> np.ndarray:
    """Half of each sequence [n], 0 or 1, from the document it was cut from; all 0 for a single document."""
    documents, of_sequence = np.unique(document, return_inverse=True)
    rank = np.empty(len(documents), np.int64)
    rank[np.argsort(_hash(documents), kind="stable")] = np.arange(len(documents))
    half: np.ndarray = (rank < len(documents) // 2).astype(np.int64)[of_sequence]
    return half


def _hash(number: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), uint64 [n]: neighbours share no bits."""
    x = number.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
