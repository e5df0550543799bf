"""Reading order of the analysed rows: by sequence and byte, whatever order the store has them in."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from trainer.store.store import RowBlock

OPENING = 8
"""Number of rows that count as the beginning of a sequence."""


@dataclass(frozen=True)
class RowOrder:
    """Text position of every row. Axis P: rows in reading order, by sequence and then by the byte where they end."""

    sequence: np.ndarray
    """Sequence of each row, int32 [P]."""
    byte_end: np.ndarray
    """Byte of the sequence's text where each row ends, int32 [P]."""
    position_of_row: np.ndarray | None
    """Position in reading order of each row of the store, int32 [P]; None if the store is in reading order."""

    @cached_property
    def first(self) -> np.ndarray:
        """Position of the first row of each row's sequence, int64 [P]."""
        return np.searchsorted(self.sequence, self.sequence)

    @cached_property
    def stop(self) -> np.ndarray:
        """One past the position of the last row of each row's sequence, int64 [P]."""
        return np.searchsorted(self.sequence, self.sequence, side="right")

    @cached_property
    def opening(self) -> np.ndarray:
        """Whether each row is one of the first eight of its sequence, bool [P]."""
        opening: np.ndarray = np.arange(len(self.sequence)) - self.first < OPENING
        return opening


class RowOrderCollector:
    """Collects sequence and byte end of blocks in stored order; twelve bytes per row."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._complete = True

    def add(self, block: RowBlock) -> None:
        """Add the next rows of the store."""
        if block.sequence is None or block.byte_end is None:
            self._complete = False
        else:
            self._parts.append((_int32(block.sequence), _int32(block.byte_end)))

    def finish(self) -> RowOrder | None:
        """The order of all rows, or None if some block lacks sequence or byte end."""
        if not self._complete or not self._parts:
            return None
        sequence, byte_end = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        key = (sequence.astype(np.int64) << 32) + byte_end
        if (np.diff(key) >= 0).all():
            return RowOrder(sequence, byte_end, None)
        order = np.argsort(key, kind="stable")
        position_of_row = np.empty(len(order), np.int32)
        position_of_row[order] = np.arange(len(order), dtype=np.int32)
        return RowOrder(sequence[order], byte_end[order], position_of_row)


def _int32(column: Tensor) -> np.ndarray:
    # Copied, since the block may map a file that is about to be closed.
    return np.array(column.cpu().numpy(), np.int32)
