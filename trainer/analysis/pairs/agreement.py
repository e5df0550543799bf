"""Counts the joint histogram of two features' activations over all rows.

Twins that represent the same concept fire on the same rows with proportional strength and fill the diagonal. Otherwise
the counts of rows on which only one of them fires are of interest. Axes: P pairs, B = 6 bins per feature.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from trainer.analysis.per_feature.contexts import FIFTHS
from trainer.analysis.rows.codes import CHUNK, CodeSpool
from trainer.analysis.rows.texts import concatenated_ranges

BINS = FIFTHS + 1
"""Bin 0: the feature does not fire; 1 to 5: fifths of the range up to its largest activation."""


def agreement(codes: CodeSpool, pairs: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Number of rows by bin of each pair's first feature and bin of its second, int64 [P, B, B].

    `pairs` is int64 [P, 2], `largest` every feature's largest activation [F]. Reads the codes once, whatever the number
    of pairs; memory does not grow with rows.
    """
    joint = np.zeros((len(pairs), BINS, BINS), np.int64)
    marginal = np.zeros((2, len(pairs), BINS), np.int64)
    for matrix in codes.matrices() if len(pairs) else ():
        feature = np.repeat(np.arange(codes.features), np.diff(matrix.indptr))
        bins_of_firings = fifths(matrix.data, largest[feature])
        for first, stop in _batches(matrix, pairs):
            some = pairs[first:stop]
            (key, bin_), (other_key, other_bin) = (_firings(matrix, bins_of_firings, some[:, side]) for side in (0, 1))
            for side, (keys, bins) in enumerate(((key, bin_), (other_key, other_bin))):
                cell = keys // matrix.shape[0] * BINS + bins
                marginal[side, first:stop] += np.bincount(cell, minlength=len(some) * BINS).reshape(-1, BINS)
            at = np.minimum(np.searchsorted(other_key, key), max(len(other_key) - 1, 0))
            both = other_key[at] == key if len(other_key) else np.zeros(len(key), bool)
            cell = (key[both] // matrix.shape[0] * BINS + bin_[both]) * BINS + other_bin[at[both]]
            counted = np.bincount(cell, minlength=len(some) * BINS * BINS)
            joint[first:stop] += counted.reshape(-1, BINS, BINS)
    joint[:, :, 0] = marginal[0] - joint.sum(axis=2)
    joint[:, 0, 1:] = (marginal[1] - joint.sum(axis=1))[:, 1:]
    joint[:, 0, 0] = codes.rows - joint.sum(axis=(1, 2))
    return joint


def fifths(value: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Fifth of the range up to the largest activation that each activation lies in, 1 to 5, int64."""
    fifth: np.ndarray = np.clip(np.ceil(value / largest * FIFTHS).astype(np.int64), 1, FIFTHS)
    return fifth


def agreement_columns(pairs: np.ndarray, tables: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of the table `agreement`; empty cells are left out."""
    pair, bin_, other_bin = np.nonzero(tables)
    return {
        "feature": pairs[pair, 0],
        "other": pairs[pair, 1],
        "bin": bin_,
        "other_bin": other_bin,
        "rows": tables[pair, bin_, other_bin],
    }


def _firings(matrix: sp.csc_array, bin_: np.ndarray, feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Firings of one feature per pair: ascending keys pair * rows + row, and the bin of each."""
    start, count = matrix.indptr[feature].astype(np.int64), np.diff(matrix.indptr)[feature].astype(np.int64)
    at, _ = concatenated_ranges(start, count)
    pair = np.repeat(np.arange(len(feature)), count)
    return pair * matrix.shape[0] + matrix.indices[at], bin_[at]


def _batches(matrix: sp.csc_array, pairs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of pairs with at most CHUNK firings joint, or a single pair."""
    firings = np.cumsum(np.diff(matrix.indptr).astype(np.int64)[pairs].sum(axis=1))
    first = 0
    while first < len(pairs):
        before = firings[first - 1] if first else 0
        stop = max(int(np.searchsorted(firings, before + CHUNK, side="right")), first + 1)
        yield first, stop
        first = stop
