"""Computes the histogram of each feature's activations at its firings."""

import numpy as np

from trainer.analysis.rows.codes import FeatureCodes

BINS = 40
"""Bins of equal width from zero to the largest activation."""


def histogram(codes: FeatureCodes) -> dict[str, np.ndarray]:
    """Columns of the table `histogram` for a range of features; empty bins are left out.

    A bin is open at its lower edge and closed at its upper edge.
    """
    largest = codes.largest().astype(np.float64)
    width = largest / BINS
    bin_ = np.ceil(codes.value / width[codes.feature]).astype(np.int64) - 1
    cell = codes.feature * BINS + np.clip(bin_, 0, BINS - 1)
    table = np.bincount(cell, minlength=codes.features * BINS)
    filled = np.flatnonzero(table)
    feature, bin_ = filled // BINS, filled % BINS
    return {
        "feature": codes.first + feature,
        "low": bin_ * width[feature],
        "high": np.where(bin_ == BINS - 1, largest[feature], (bin_ + 1) * width[feature]),
        "count": table[filled],
    }
