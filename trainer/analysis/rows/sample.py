"""Holds normalised activations of whole sequences in memory, for statistics that need rows again and again.

Axes: R rows of the sample, W width of a source.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.rows.cross_fit import TwoFold
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.store.store import ActivationStore, RowBlock, Split

MAX_BYTES = 2**29
"""Size limit of the sample; of a larger store, every n-th sequence is taken."""
MOST_JUDGED = 0.5
"""Share of the sample that held-out rows may take."""
CLUSTER_ROWS = 256
"""Consecutive rows that count as one group of documents in a store without texts."""


@dataclass(frozen=True)
class RowSample:
    """Rows of a store: those that claims are judged on, then others, that only help to fit; each in stored order."""

    rows: dict[str, Tensor]
    """Normalised activations by source, bf16 [R, W]."""
    fold: np.ndarray
    """Fold of cross-fitting of each row, 0 or 1 [R]."""
    cluster: np.ndarray
    """Number of each row's group of documents, from 0, int64 [R]: rows of one group are not independent."""
    index: np.ndarray
    """Index in the sample of each row of the store, int64; -1 for rows that are not in it."""
    judged: int
    """How many leading rows claims are judged on: those that training never saw; all if none were held out."""
    sequence: np.ndarray
    """Sequence of each row, int64 [R]; -1 in a store that does not say where in it a row is."""
    byte_end: np.ndarray | None = None
    """Byte of its sequence's text at which each row's token ends, int64 [R]; None in a store without texts."""

    @property
    def size(self) -> int:
        """Rows in the sample."""
        return len(self.fold)

    @property
    def clusters(self) -> int:
        """Groups of documents in the sample."""
        return int(self.cluster.max(initial=-1)) + 1

    @property
    def judged_clusters(self) -> np.ndarray:
        """Groups of documents with judged rows, bool [K]."""
        judged: np.ndarray = np.bincount(self.cluster[: self.judged], minlength=self.clusters) > 0
        return judged

    def neighbour(self, shift: int) -> np.ndarray:
        """Of each row the row `shift` rows on in its sequence and fold, or itself where there is none, int64 [R]."""
        row = np.arange(self.size)
        other = np.clip(row + shift, 0, max(self.size - 1, 0))
        known = (self.sequence[other] == self.sequence) & (self.fold[other] == self.fold) & (self.sequence >= 0)
        neighbour: np.ndarray = np.where(known, other, row)
        return neighbour

    def take_first(self, rows: int) -> "RowSample":
        """Its first rows, of which at most three quarters are judged; the activations of this one are let go."""
        some = slice(rows)
        cluster = np.unique(self.cluster[some], return_inverse=True)[1]
        kept = {name: self.rows.pop(name)[some].clone() for name in list(self.rows)}
        return RowSample(
            kept,
            self.fold[some],
            cluster,
            np.where(self.index < rows, self.index, -1),
            min(self.judged, 3 * min(rows, self.size) // 4 if rows < self.size else self.judged),
            self.sequence[some],
            None if self.byte_end is None else self.byte_end[some],
        )

    def select(self, row: np.ndarray) -> np.ndarray:
        """Indices in the sample of some rows of the store, without those that are not in it."""
        found = self.index[row]
        selected: np.ndarray = found[found >= 0]
        return selected


def sample_rows(store: ActivationStore, crosscoder: Crosscoder, *, max_bytes: int = MAX_BYTES) -> RowSample:
    """Rows of a store in memory, at most `max_bytes` of them: held-out rows first, then as many others as have room."""
    room = min(store.manifest.rows, max(max_bytes // (2 * sum(crosscoder.widths.values())), 2))
    filling = _FillingSample(store, crosscoder, room)
    filling.add("held_out", room if not store.count("train") else int(room * MOST_JUDGED))
    judged = filling.kept
    filling.add("train", room)
    return filling.finish(judged or filling.kept)


class _FillingSample:
    """A sample that is being filled."""

    def __init__(self, store: ActivationStore, crosscoder: Crosscoder, room: int) -> None:
        self._store, self._crosscoder = store, crosscoder
        self._folds, self._groups = TwoFold.from_store(store), store.document_groups()
        self._held_out = store.held_out_rows()
        self._rows = {name: torch.empty(room, width, dtype=torch.bfloat16) for name, width in crosscoder.widths.items()}
        self._fold, self._cluster, self._sequence, self._byte_end = np.empty((4, room), np.int64)
        self._has_texts = store.manifest.sequences is not None
        self._index = np.full(len(self._held_out), -1, np.int64)
        self.kept = 0
        """Rows so far."""

    def add(self, split: Split, limit: int) -> None:
        """Add whole units of a split, evenly spaced, until there are at most `limit` rows."""
        numbers = np.flatnonzero(self._held_out == (split == "held_out"))
        step, at = max(1, -(-len(numbers) // max(limit - self.kept, 1))), 0
        for block in self._store.blocks(split):
            first = int(numbers[at])
            unit = _unit(block, first)
            keep = torch.nonzero(unit % step == 0).squeeze(1)[: limit - self.kept]
            some = slice(self.kept, self.kept + len(keep))
            for name, x in self._crosscoder.normalise(_take(block, keep)).items():
                self._rows[name][some] = x.to("cpu", torch.bfloat16)
            self._fold[some] = self._folds.folds_of_block(block, first)[keep].numpy()
            self._cluster[some] = self._groups_of(block, unit)[keep.numpy()]
            self._sequence[some] = -1 if block.position is None else unit[keep].numpy()
            self._byte_end[some] = -1 if block.byte_end is None else block.byte_end[keep].numpy()
            self._index[first + keep.numpy()] = np.arange(some.start, some.stop)
            at, self.kept = at + len(unit), some.stop

    def _groups_of(self, block: RowBlock, unit: Tensor) -> np.ndarray:
        if self._groups is None or block.sequence is None:
            return np.array(unit.numpy())
        # Sequences out of range are reported later, by `check_row_order`.
        return np.array(self._groups[block.sequence.clamp(0, len(self._groups) - 1).numpy()])

    def finish(self, judged: int) -> RowSample:
        """The sample, with so many rows to judge claims on."""
        _, cluster = np.unique(self._cluster[: self.kept], return_inverse=True)
        rows = {name: x[: self.kept] for name, x in self._rows.items()}
        kept = slice(self.kept)
        byte_end = self._byte_end[kept] if self._has_texts else None
        return RowSample(rows, self._fold[kept], cluster, self._index, judged, self._sequence[kept], byte_end)


def _unit(block: RowBlock, first: int) -> Tensor:
    """The sequence of each row, or a number for every CLUSTER_ROWS rows; the sample takes whole units."""
    if block.sequence is not None:
        return block.sequence.long()
    count = len(next(iter(block.rows.values())))
    return torch.arange(first, first + count) // CLUSTER_ROWS


def _take(block: RowBlock, keep: Tensor) -> dict[str, Tensor]:
    whole = len(keep) == len(next(iter(block.rows.values())))
    return {name: x if whole else x[keep] for name, x in block.rows.items()}
