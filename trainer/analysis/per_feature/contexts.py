"""Selects the firings of each feature whose contexts are stored, and cuts the text around each.

Selected are the strongest ones, at most one per sequence, and a uniform sample from each fifth of the feature's
activation range: the strongest alone make a feature look cleaner than it is.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from trainer.analysis.rows.codes import FeatureCodes, is_run_start, rank_within
from trainer.analysis.rows.row_order import RowOrder
from trainer.analysis.rows.texts import Texts, concatenated_ranges
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


class Windows:
    """Cuts windows of a number of rows. Rows are common token ends, so windows split no source's tokens."""

    def __init__(self, row_order: RowOrder, texts: Texts, rows: int) -> None:
        """Cut windows of `rows` rows, slightly more where a row ends inside a character."""
        self.row_order, self.texts, self._rows = row_order, texts, rows
        self._cut_before, self._cut_after = _nearest_cuts(texts.at_character_ends(row_order))

    def around(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """First and last position, and start and end byte, of the window around each position [n].

        At the edges of a sequence the window shifts instead of shrinking. Where a row ends inside a character the
        window grows to the next row that ends at the end of one.
        """
        first_of, stop_of = self.row_order.first[position], self.row_order.stop[position]
        first = np.clip(position - self._rows // 2, first_of, np.maximum(stop_of - self._rows, first_of))
        last = np.minimum(first + self._rows, stop_of) - 1
        # The window starts where the last row before it that can be cut ends.
        before = self._cut_before[np.maximum(first - 1, 0)]
        inside = (first > first_of) & (before >= first_of)
        byte_start = np.where(inside, self.row_order.byte_end[before], 0)
        after = self._cut_after[last]
        whole = after < stop_of
        byte_end = np.where(
            whole,
            self.row_order.byte_end[np.minimum(after, len(self._cut_after) - 1)],
            self.texts.length[self.row_order.sequence[position]],
        )
        return np.where(inside, before + 1, first_of), np.where(whole, after, stop_of - 1), byte_start, byte_end

    def columns(self, codes: FeatureCodes, kept: KeptFirings) -> dict[str, np.ndarray | pa.Array]:
        """Columns of the table `firing` for the selected firings of a range of features, rows in reading order."""
        sequence = self.row_order.sequence[kept.position]
        first, last, byte_start, byte_end = self.around(kept.position)
        corpora = pa.array(self.texts.corpora, pa.string())
        return {
            "feature": codes.first + kept.feature,
            "rank": kept.rank,
            "bucket": pa.array(BUCKETS).take(pa.array(kept.bucket)),
            "sequence": sequence,
            "corpus": corpora.take(pa.array(self.texts.corpus[sequence])),
            "peak": kept.peak,
            "peak_byte_end": self.row_order.byte_end[kept.position],
            "byte_start": byte_start,
            "text": self.texts.cut(sequence, byte_start, byte_end),
            "tokens": self.texts.tokens(sequence, byte_start, byte_end),
            "activations": self._activations(codes, kept.feature, first, last),
        }

    def _activations(
        self, codes: FeatureCodes, feature: np.ndarray, first: np.ndarray, last: np.ndarray
    ) -> pa.ListArray:
        """Firings of each window's feature at positions `first` to `last`, per window [n][firings]."""
        rows = len(self.row_order.sequence)
        key = codes.feature * rows + codes.row
        low = np.searchsorted(key, feature * rows + first)
        high = np.searchsorted(key, feature * rows + last, side="right")
        at, start = concatenated_ranges(low, high - low)
        activation = pa.StructArray.from_arrays(
            [pa.array(self.row_order.byte_end[codes.row[at]]), pa.array(codes.value[at])], ["byte_end", "activation"]
        )
        return pa.ListArray.from_arrays(pa.array(start, pa.int32()), activation)


def sequence_columns(texts: Texts, sequence: np.ndarray) -> dict[str, np.ndarray | pa.Array]:
    """Columns of the table `sequence` for some sequences, in ascending order."""
    start = np.zeros(len(sequence), np.int64)
    return {
        "sequence": sequence,
        "document": texts.document[sequence],
        "corpus": pa.array(texts.corpora, pa.string()).take(pa.array(texts.corpus[sequence])),
        "held_out": texts.held_out[sequence],
        "text": texts.cut(sequence, start, texts.length[sequence]),
        "tokens": texts.tokens(sequence, start, texts.length[sequence]),
    }


def _nearest_cuts(cuttable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each position, the last at or before it and the first at or after it that can be cut, int64 [P].

    A row can be cut if it ends at the end of a character. -1 and P stand for none; the found positions may lie in
    another sequence.
    """
    index = np.arange(len(cuttable))
    before = np.maximum.accumulate(np.where(cuttable, index, -1))
    after = np.minimum.accumulate(np.where(cuttable, index, len(index))[::-1])[::-1]
    return before, after
