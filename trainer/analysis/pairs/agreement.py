"""Agreement: how the activations of two features compare row by row, counted over bins of each one's own range.

Twins that are one meaning fire on the same rows with the same strength, and fill the diagonal. What matters about two
others is where they part: the counts of rows where only one of them fires. Axes: P pairs, B = 6 bins of either.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from trainer.analysis.per_feature.contexts import FIFTHS
from trainer.analysis.rows.codes import CHUNK, CodeSpool
from trainer.analysis.rows.texts import spread

BINS = FIFTHS + 1
"""Bin 0 is not firing, 1 to 5 are the fifths of the range up to the feature's largest activation."""


def agreement(codes: CodeSpool, pairs: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Rows by bin of each pair's first feature and bin of its second, int64 [P, B, B].

    `pairs` int64 [P, 2]; `largest` is every feature's largest activation [F]. One read of the codes, whatever the
    number of pairs; memory does not grow with rows.
    """
    together = np.zeros((len(pairs), BINS, BINS), np.int64)
    alone = np.zeros((2, len(pairs), BINS), np.int64)
    for matrix in codes.matrices() if len(pairs) else ():
        feature = np.repeat(np.arange(codes.features), np.diff(matrix.indptr))
        level = fifths(matrix.data, largest[feature])
        for first, stop in _batches(matrix, pairs):
            some = pairs[first:stop]
            (key, bin_), (other_key, other_bin) = (_firings(matrix, level, some[:, side]) for side in (0, 1))
            for side, (keys, bins) in enumerate(((key, bin_), (other_key, other_bin))):
                cell = keys // matrix.shape[0] * BINS + bins
                alone[side, first:stop] += np.bincount(cell, minlength=len(some) * BINS).reshape(-1, BINS)
            at = np.minimum(np.searchsorted(other_key, key), max(len(other_key) - 1, 0))
            both = other_key[at] == key if len(other_key) else np.zeros(len(key), bool)
            cell = (key[both] // matrix.shape[0] * BINS + bin_[both]) * BINS + other_bin[at[both]]
            counted = np.bincount(cell, minlength=len(some) * BINS * BINS)
            together[first:stop] += counted.reshape(-1, BINS, BINS)
    together[:, :, 0] = alone[0] - together.sum(axis=2)
    together[:, 0, 1:] = (alone[1] - together.sum(axis=1))[:, 1:]
    together[:, 0, 0] = codes.rows - together.sum(axis=(1, 2))
    return together


def fifths(value: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Which fifth of the range up to the largest activation each activation lies in, 1 to 5."""
    level: np.ndarray = np.clip(np.ceil(value / largest * FIFTHS).astype(np.int64), 1, FIFTHS)
    return level


def columns(pairs: np.ndarray, tables: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of the table `agreement`; cells without rows are left out."""
    pair, bin_, other_bin = np.nonzero(tables)
    return {
        "feature": pairs[pair, 0],
        "other": pairs[pair, 1],
        "bin": bin_,
        "other_bin": other_bin,
        "rows": tables[pair, bin_, other_bin],
    }


def _firings(matrix: sp.csc_array, level: np.ndarray, feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Firings of a feature for each pair: pair times rows plus row, rising, and the bin."""
    begin, count = matrix.indptr[feature].astype(np.int64), np.diff(matrix.indptr)[feature].astype(np.int64)
    at, _ = spread(begin, count)
    pair = np.repeat(np.arange(len(feature)), count)
    return pair * matrix.shape[0] + matrix.indices[at], level[at]


def _batches(matrix: sp.csc_array, pairs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of pairs whose firings fit in memory together."""
    firings = np.cumsum(np.diff(matrix.indptr).astype(np.int64)[pairs].sum(axis=1))
    first = 0
    while first < len(pairs):
        before = firings[first - 1] if first else 0
        stop = max(int(np.searchsorted(firings, before + CHUNK, side="right")), first + 1)
        yield first, stop
        first = stop
