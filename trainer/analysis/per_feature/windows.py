"""Cuts the context around each selected firing: text, tokens of every source, activations."""

import numpy as np
import pyarrow as pa

from trainer.analysis.per_feature.contexts import BUCKETS, KeptFirings
from trainer.analysis.rows.codes import FeatureCodes
from trainer.analysis.rows.row_order import RowOrder
from trainer.analysis.rows.texts import Texts, concatenated_ranges


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
