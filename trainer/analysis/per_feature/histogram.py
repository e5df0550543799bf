"""Histogram: how each feature's activations are distributed where it fired."""

import numpy as np

from trainer.analysis.rows.codes import FeatureCodes

BINS = 40
"""Bins from zero to the largest activation, equally wide."""


def histogram(codes: FeatureCodes) -> dict[str, np.ndarray]:
    """Columns of the table `histogram` for a range of features; empty bins are left out.

    A bin holds the activations above its lower edge, up to and including its upper edge.
    """
    largest = codes.largest().astype(np.float64)
    width = largest / BINS
    level = np.ceil(codes.value / width[codes.feature]).astype(np.int64) - 1
    cell = codes.feature * BINS + np.clip(level, 0, BINS - 1)
    table = np.bincount(cell, minlength=codes.features * BINS)
    filled = np.flatnonzero(table)
    feature, level = filled // BINS, filled % BINS
    return {
        "feature": codes.first + feature,
        "low": level * width[feature],
        "high": np.where(level == BINS - 1, largest[feature], (level + 1) * width[feature]),
        "count": table[filled],
    }
