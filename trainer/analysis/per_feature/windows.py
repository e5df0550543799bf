"""Windows: the piece of text around a kept firing, with the tokens of every source and the feature's activations."""

import numpy as np
import pyarrow as pa

from trainer.analysis.per_feature.contexts import BUCKETS, Kept
from trainer.analysis.rows.codes import FeatureCodes
from trainer.analysis.rows.row_order import RowOrder
from trainer.analysis.rows.texts import Texts, spread


class Windows:
    """Cuts windows of a number of rows. Rows are common token ends, so every source's tokens fit whole."""

    def __init__(self, places: RowOrder, texts: Texts, rows: int) -> None:
        """Cut windows of `rows` rows, a little more where a row ends inside a character."""
        self.places, self.texts, self._rows = places, texts, rows
        self._begin, self._end = _character_places(texts.between_characters(places))

    def around(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """First and last place, and first and last byte, of the window around each place [n].

        At the edges of a sequence the window moves instead of shrinking. Between places that end inside a character
        it grows until it can be cut.
        """
        first_of, stop_of = self.places.first[place], self.places.stop[place]
        first = np.clip(place - self._rows // 2, first_of, np.maximum(stop_of - self._rows, first_of))
        last = np.minimum(first + self._rows, stop_of) - 1
        # The byte before the window is where the last cuttable place before it ends.
        before = self._begin[np.maximum(first - 1, 0)]
        inside = (first > first_of) & (before >= first_of)
        byte_start = np.where(inside, self.places.byte_end[before], 0)
        after = self._end[last]
        whole = after < stop_of
        byte_end = np.where(
            whole,
            self.places.byte_end[np.minimum(after, len(self._end) - 1)],
            self.texts.length[self.places.sequence[place]],
        )
        return np.where(inside, before + 1, first_of), np.where(whole, after, stop_of - 1), byte_start, byte_end

    def columns(self, codes: FeatureCodes, kept: Kept) -> dict[str, np.ndarray | pa.Array]:
        """Columns of the table `firing` for the kept firings of a range of features, whose rows are places."""
        sequence = self.places.sequence[kept.place]
        first, last, byte_start, byte_end = self.around(kept.place)
        corpora = pa.array(self.texts.corpora, pa.string())
        return {
            "feature": codes.first + kept.feature,
            "rank": kept.rank,
            "bucket": pa.array(BUCKETS).take(pa.array(kept.bucket)),
            "sequence": sequence,
            "corpus": corpora.take(pa.array(self.texts.corpus[sequence])),
            "peak": kept.peak,
            "peak_byte_end": self.places.byte_end[kept.place],
            "byte_start": byte_start,
            "text": self.texts.cut(sequence, byte_start, byte_end),
            "tokens": self.texts.tokens(sequence, byte_start, byte_end),
            "activations": self._activations(codes, kept.feature, first, last),
        }

    def _activations(
        self, codes: FeatureCodes, feature: np.ndarray, first: np.ndarray, last: np.ndarray
    ) -> pa.ListArray:
        """The feature's firings at the places from `first` to `last`, per window [n][firings]."""
        places = len(self.places.sequence)
        key = codes.feature * places + codes.row
        low = np.searchsorted(key, feature * places + first)
        high = np.searchsorted(key, feature * places + last, side="right")
        at, start = spread(low, high - low)
        activation = pa.StructArray.from_arrays(
            [pa.array(self.places.byte_end[codes.row[at]]), pa.array(codes.value[at])], ["byte_end", "activation"]
        )
        return pa.ListArray.from_arrays(pa.array(start, pa.int32()), activation)


def sequence_columns(texts: Texts, sequence: np.ndarray) -> dict[str, np.ndarray | pa.Array]:
    """Columns of the table `sequence` for some sequences, in rising order."""
    nothing = np.zeros(len(sequence), np.int64)
    return {
        "sequence": sequence,
        "document": texts.document[sequence],
        "corpus": pa.array(texts.corpora, pa.string()).take(pa.array(texts.corpus[sequence])),
        "held_out": texts.held_out[sequence],
        "text": texts.cut(sequence, nothing, texts.length[sequence]),
        "tokens": texts.tokens(sequence, nothing, texts.length[sequence]),
    }


def _character_places(cuttable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each place, the last one up to it and the first one from it that end where a character ends [P].

    They may lie in another sequence; -1 and P stand for none.
    """
    index = np.arange(len(cuttable))
    up_to = np.maximum.accumulate(np.where(cuttable, index, -1))
    from_it = np.minimum.accumulate(np.where(cuttable, index, len(index))[::-1])[::-1]
    return up_to, from_it
