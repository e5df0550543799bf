"""Contexts: which firings of each feature are kept to be read.

The strongest, one per sequence, exactly; and a uniform sample from each fifth of the feature's range, because
the strongest alone make a feature look cleaner than it is.
"""

from typing import NamedTuple

import numpy as np

from trainer.analysis.rows.codes import FeatureCodes, begins, rank_within
from trainer.analysis.rows.row_order import RowOrder
from trainer.recipe.measuring import ContextsRecipe

FIFTHS = 5
BUCKETS = ("q1", "q2", "q3", "q4", "q5", "top")
"""Names of the buckets in the order in which a feature's firings are stored."""
TOP = BUCKETS.index("top")


class Kept(NamedTuple):
    """Firings that are kept, by feature, bucket and rank. Axis K: kept firings."""

    feature: np.ndarray
    """Counted from the range's first feature, int64 [K]."""
    bucket: np.ndarray
    """Index into BUCKETS, int64 [K]."""
    rank: np.ndarray
    """Place within the bucket, strongest first, int64 [K]."""
    place: np.ndarray
    """Place of the firing, int64 [K]."""
    peak: np.ndarray
    """Activation there, fp32 [K]."""


def keep(codes: FeatureCodes, places: RowOrder, recipe: ContextsRecipe, *, seed: int = 0) -> Kept:
    """The firings to keep of a range of features, whose rows are places. The sample depends on the seed alone."""
    top = _top(codes, places, recipe.top)
    sample, fifth = _sample(codes, recipe.per_quantile, seed)
    chosen = np.concatenate([top, sample])
    bucket = np.concatenate([np.full(len(top), TOP), fifth])
    feature, peak = codes.feature[chosen], codes.value[chosen]
    order = np.lexsort((chosen, -peak, bucket, feature))
    feature, bucket, chosen = feature[order], bucket[order], chosen[order]
    rank = rank_within(feature * len(BUCKETS) + bucket)
    return Kept(feature, bucket, rank, codes.row[chosen], codes.value[chosen])


def _top(codes: FeatureCodes, places: RowOrder, count: int) -> np.ndarray:
    """Indices of each feature's strongest firings, at most one per sequence."""
    if not len(codes.row):
        return np.zeros(0, np.int64)
    feature, sequence = codes.feature, places.sequence[codes.row]
    new = begins(feature) | begins(sequence)
    group = np.cumsum(new) - 1
    largest = np.maximum.reduceat(codes.value, np.flatnonzero(new))
    at_largest = np.flatnonzero(codes.value == largest[group])
    # Of equal peaks in one sequence the earliest counts.
    peaks = at_largest[begins(group[at_largest])]
    order = peaks[np.lexsort((-codes.value[peaks], feature[peaks]))]
    strongest: np.ndarray = order[rank_within(feature[order]) < count]
    return strongest


def _sample(codes: FeatureCodes, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a uniform sample from each fifth of each feature's range, and the fifth of each, from 0."""
    share = codes.value / codes.largest()[codes.feature]
    fifth = np.clip(np.ceil(share * FIFTHS).astype(np.int64) - 1, 0, FIFTHS - 1)
    lot = np.random.default_rng((seed, codes.first)).integers(0, 1 << 32, len(fifth), dtype=np.int64)
    key = ((codes.feature * FIFTHS + fifth) << 32) + lot
    order = np.argsort(key, kind="stable")
    chosen = order[rank_within(key[order] >> 32) < count]
    return chosen, fifth[chosen]
