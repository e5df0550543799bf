"""Places: all analysed rows in reading order, sequence after sequence, whatever order the store has them in."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from trainer.store.store import Block

OPENING = 8
"""Rows that count as the beginning of a sequence."""


@dataclass(frozen=True)
class RowOrder:
    """Where in the text every row lies. Axis P: rows by sequence and then by the byte where they end."""

    sequence: np.ndarray
    """Sequence of each place, int32 [P]."""
    byte_end: np.ndarray
    """Byte of the sequence's text where each place ends, int32 [P]."""
    of_row: np.ndarray | None
    """Place of each row of the store, int32 [P]; None when the store is in reading order already."""

    @cached_property
    def first(self) -> np.ndarray:
        """First place of each place's sequence, int64 [P]."""
        return np.searchsorted(self.sequence, self.sequence)

    @cached_property
    def stop(self) -> np.ndarray:
        """One past the last place of each place's sequence, int64 [P]."""
        return np.searchsorted(self.sequence, self.sequence, side="right")

    @cached_property
    def opening(self) -> np.ndarray:
        """Whether each place is one of the first eight rows of its sequence, bool [P]."""
        opening: np.ndarray = np.arange(len(self.sequence)) - self.first < OPENING
        return opening


class RowOrderCollector:
    """Gathers the places of blocks in stored order; twelve bytes per row."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._complete = True

    def add(self, block: Block) -> None:
        """Take in the places of the next rows."""
        if block.sequence is None or block.byte_end is None:
            self._complete = False
        else:
            self._parts.append((_int32(block.sequence), _int32(block.byte_end)))

    def finish(self) -> RowOrder | None:
        """The places of all rows, or None when some block had none."""
        if not self._complete or not self._parts:
            return None
        sequence, byte_end = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        key = (sequence.astype(np.int64) << 32) + byte_end
        if (np.diff(key) >= 0).all():
            return RowOrder(sequence, byte_end, None)
        order = np.argsort(key, kind="stable")
        of_row = np.empty(len(order), np.int32)
        of_row[order] = np.arange(len(order), dtype=np.int32)
        return RowOrder(sequence[order], byte_end[order], of_row)


def _int32(column: Tensor) -> np.ndarray:
    # A copy: the block may be a mapping of a file that is about to be closed.
    return np.array(column.cpu().numpy(), np.int32)
