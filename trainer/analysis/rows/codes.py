"""Spools the firings of one encode pass to disk and reads them back by feature in bounded memory.

An encode pass yields firings by row; analysis needs them by feature. Firings are written to temporary files in chunks
of about a million, each sorted by feature, so that any range of features is one contiguous read per chunk.
The files have no name on disk, so they vanish with the process even if it is killed.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from trainer.crosscoder.crosscoder import Codes
from trainer.errors import DiskFull, StoreError
from trainer.run.folder import is_disk_full

CHUNK = 1 << 20
"""Firings per chunk: 8 MiB on disk, a few times that in memory."""
RANGE = 512
"""Most features read at a time."""


@dataclass(frozen=True)
class FeatureCodes:
    """All firings of a contiguous range of features, by feature and then by row."""

    first: int
    """The range's first feature."""
    start: np.ndarray
    """Where each feature's firings begin, int64 [features + 1]."""
    row: np.ndarray
    """Row of each firing, int64 [firings]; rows rise within a feature."""
    value: np.ndarray
    """Activation of each firing, fp32 [firings]."""

    @property
    def features(self) -> int:
        """Features in the range."""
        return len(self.start) - 1

    @cached_property
    def counts(self) -> np.ndarray:
        """Firings of each feature, int64 [features]."""
        return np.diff(self.start)

    @cached_property
    def feature(self) -> np.ndarray:
        """Feature of each firing, counted from the range's first, int64 [firings]."""
        return np.repeat(np.arange(self.features), self.counts)

    def largest(self) -> np.ndarray:
        """Largest activation of each feature, fp32 [features]; 0 for a feature that never fired."""
        result = np.zeros(self.features, np.float32)
        fired = self.counts > 0
        if fired.any():
            result[fired] = np.maximum.reduceat(self.value, self.start[:-1][fired])
        return result

    def reordered(self, position: np.ndarray | None) -> "FeatureCodes":
        """The same firings with row r replaced by position[r], sorted again; unchanged if `position` is None."""
        if position is None:
            return self
        row = position[self.row].astype(np.int64)
        order = np.argsort(self.feature * (int(position.max(initial=0)) + 1) + row, kind="stable")
        return FeatureCodes(self.first, self.start, row[order], self.value[order])


class _Chunk(NamedTuple):
    """Extent of a chunk in the files, in entries."""

    first: int
    entries: int


class CodeSpool:
    """Firings of one pass. Append blocks in stored order, `flush`, then read; close to free the disk."""

    def __init__(self, folder: Path, features: int) -> None:
        """Spool in unnamed files on the disk of `folder`."""
        self.features = features
        self.rows = 0
        """Rows appended, firing or not."""
        self.counts = np.zeros(features, np.int64)
        """Firings of each feature flushed so far."""
        folder.mkdir(parents=True, exist_ok=True)
        self._index, self._row, self._value = (tempfile.TemporaryFile(dir=folder) for _ in range(3))  # noqa: SIM115
        self._chunks: list[_Chunk] = []
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._pending_entries = 0

    def __enter__(self) -> "CodeSpool":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._index, self._row, self._value):
            file.close()

    def append(self, codes: Codes) -> None:
        """Add the firings of the next rows. Raises StoreError for values that are not finite."""
        value = codes.value.detach().to("cpu", torch.float32).numpy()
        if not np.isfinite(value).all():
            raise StoreError(
                f"Rows {self.rows} to {self.rows + codes.rows} of the activation store give infinite or NaN feature "
                "activations. Check the store with `crossdiff doctor`, or harvest it again in bfloat16."
            )
        row = codes.row.cpu().numpy() + self.rows
        self._pending.append((row, codes.feature.cpu().numpy(), value))
        self._pending_entries += len(value)
        self.rows += codes.rows
        if self._pending_entries >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write pending firings as one chunk. Raises DiskFull."""
        if not self._pending_entries:
            return
        row, feature, value = (np.concatenate(column) for column in zip(*self._pending, strict=True))
        self._pending, self._pending_entries = [], 0
        # SciPy's conversion is a counting sort: by feature, rows in order within each.
        low = int(row[0])
        by_row = sp.csr_array((value, (row - low, feature)), shape=(int(row[-1]) - low + 1, self.features))
        by_feature = by_row.tocsc()
        at = self._chunks[-1].first + self._chunks[-1].entries if self._chunks else 0
        self._chunks.append(_Chunk(at, by_feature.nnz))
        self.counts += np.diff(by_feature.indptr)
        try:
            _append(self._index, by_feature.indptr.astype(np.int64))
            _append(self._row, by_feature.indices.astype(np.int64) + low)
            _append(self._value, by_feature.data)
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise DiskFull(
                "The disk is full while analysing. Free some room and run the same command again."
            ) from error

    def read(self, first: int, stop: int) -> FeatureCodes:
        """All firings of the features from `first` up to `stop`."""
        start = np.concatenate([[0], np.cumsum(self.counts[first:stop])])
        row, value = np.empty(start[-1], np.int64), np.empty(start[-1], np.float32)
        cursor = start[:-1].copy()
        for number, chunk in enumerate(self._chunks):
            index = self._indptr(number, first, stop)
            count = np.diff(index)
            # Append this chunk's firings of each feature to those of earlier chunks.
            into = np.repeat(cursor - (index[:-1] - index[0]), count) + np.arange(index[-1] - index[0])
            at, entries = chunk.first + int(index[0]), int(index[-1] - index[0])
            row[into] = _read(self._row, np.int64, at, entries)
            value[into] = _read(self._value, np.float32, at, entries)
            cursor += count
        return FeatureCodes(first, start, row, value)

    def feature_ranges(self) -> Iterator[FeatureCodes]:
        """Firings of all features in order, in ranges of at most about a million firings and 512 features."""
        first = 0
        total = np.cumsum(self.counts)
        while first < self.features:
            before = total[first - 1] if first else 0
            stop = int(np.searchsorted(total, before + CHUNK, side="right"))
            stop = max(min(stop, first + RANGE), first + 1)
            yield self.read(first, stop)
            first = stop

    def matrices(self) -> Iterator[sp.csc_array]:
        """Firings of consecutive rows as sparse matrices [rows of the chunk, features], rows counted from the first."""
        for number, chunk in enumerate(self._chunks):
            row = _read(self._row, np.int64, chunk.first, chunk.entries)
            low, high = int(row.min()), int(row.max())
            value = _read(self._value, np.float32, chunk.first, chunk.entries)
            index = self._indptr(number, 0, self.features)
            yield sp.csc_array(
                (value, (row - low).astype(np.int32), index.astype(np.int32)), shape=(high - low + 1, self.features)
            )

    def _indptr(self, number: int, first: int, stop: int) -> np.ndarray:
        return _read(self._index, np.int64, number * (self.features + 1) + first, stop - first + 1)


def rank_within(group: np.ndarray) -> np.ndarray:
    """Index of each element within its run of equal values: 0, 1, 2, ..."""
    index = np.arange(len(group))
    return index - np.maximum.accumulate(np.where(is_run_start(group), index, 0))


def is_run_start(values: np.ndarray) -> np.ndarray:
    """Whether each value starts a run, that is differs from the one before; always true for the first."""
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return new


def _append(file: IO[bytes], array: np.ndarray) -> None:
    file.seek(0, os.SEEK_END)
    file.write(np.ascontiguousarray(array).tobytes())
    file.flush()


def _read(file: IO[bytes], dtype: type[np.generic], at: int, entries: int) -> np.ndarray:
    """Entries of a file, copied: pages of a memory map would count towards the process's resident memory."""
    file.seek(at * np.dtype(dtype).itemsize)
    return np.fromfile(file, dtype, entries)
