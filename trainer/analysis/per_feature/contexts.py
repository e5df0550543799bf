"""Selects the firings of each feature whose contexts are stored.

The strongest ones, at most one per sequence, and a uniform sample from each fifth of the feature's activation range:
the strongest alone make a feature look cleaner than it is.
"""

from typing import NamedTuple

import numpy as np

from trainer.analysis.rows.codes import FeatureCodes, is_run_start, rank_within
from trainer.analysis.rows.row_order import RowOrder
from trainer.recipe.measuring import ContextsRecipe

FIFTHS = 5
BUCKETS = ("q1", "q2", "q3", "q4", "q5", "top")
"""Names of the buckets, in the order in which a feature's firings are stored."""
TOP = BUCKETS.index("top")


class KeptFirings(NamedTuple):
    """Selected firings, sorted by feature, bucket and rank. Axis K: selected firings."""

    feature: np.ndarray
    """Index of the feature, relative to the first of the range, int64 [K]."""
    bucket: np.ndarray
    """Index into BUCKETS, int64 [K]."""
    rank: np.ndarray
    """Rank within the bucket, strongest first, int64 [K]."""
    position: np.ndarray
    """Position of the firing's row in reading order, int64 [K]."""
    peak: np.ndarray
    """Activation at that row, fp32 [K]."""


def select_firings(codes: FeatureCodes, row_order: RowOrder, recipe: ContextsRecipe, *, seed: int = 0) -> KeptFirings:
    """Firings to store of a range of features, rows in reading order. The sample depends on the seed alone."""
    top = _top(codes, row_order, recipe.top)
    sample, fifth = _sample(codes, recipe.per_quantile, seed)
    chosen = np.concatenate([top, sample])
    bucket = np.concatenate([np.full(len(top), TOP), fifth])
    feature, peak = codes.feature[chosen], codes.value[chosen]
    order = np.lexsort((chosen, -peak, bucket, feature))
    feature, bucket, chosen = feature[order], bucket[order], chosen[order]
    rank = rank_within(feature * len(BUCKETS) + bucket)
    return KeptFirings(feature, bucket, rank, codes.row[chosen], codes.value[chosen])


def _top(codes: FeatureCodes, row_order: RowOrder, count: int) -> np.ndarray:
    """Indices of each feature's strongest firings, at most one per sequence."""
    if not len(codes.row):
        return np.zeros(0, np.int64)
    feature, sequence = codes.feature, row_order.sequence[codes.row]
    starts = is_run_start(feature) | is_run_start(sequence)
    group = np.cumsum(starts) - 1
    largest = np.maximum.reduceat(codes.value, np.flatnonzero(starts))
    at_largest = np.flatnonzero(codes.value == largest[group])
    # Of equal activations in one sequence the earliest is taken.
    peaks = at_largest[is_run_start(group[at_largest])]
    order = peaks[np.lexsort((-codes.value[peaks], feature[peaks]))]
    strongest: np.ndarray = order[rank_within(feature[order]) < count]
    return strongest


def _sample(codes: FeatureCodes, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a uniform sample from each fifth of each feature's range, and the fifth (0 to 4) of each."""
    relative = codes.value / codes.largest()[codes.feature]
    fifth = np.clip(np.ceil(relative * FIFTHS).astype(np.int64) - 1, 0, FIFTHS - 1)
    draw = np.random.default_rng((seed, codes.first)).integers(0, 1 << 32, len(fifth), dtype=np.int64)
    key = ((codes.feature * FIFTHS + fifth) << 32) + draw
    order = np.argsort(key, kind="stable")
    chosen = order[rank_within(key[order] >> 32) < count]
    return chosen, fifth[chosen]
