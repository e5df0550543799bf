"""Texts: the harvested sequences with their tokens in every source, as flat arrays to cut from.

Axes: Q sequences, S sources, L token lists (Q times S, sequence by sequence), T tokens of all lists in a row.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.analysis.rows.row_order import RowOrder
from trainer.errors import StoreError

COLUMNS = ("sequence", "document", "corpus", "held_out", "text", "template_spans", "tokens")
WIDE = 32
"""Bits for a byte or token position in a key that sorts by something else first."""


@dataclass(frozen=True)
class Texts:
    """The sequences of a store."""

    document: np.ndarray
    """Document each sequence was cut from, int32 [Q]."""
    held_out: np.ndarray
    """Whether training never saw it, bool [Q]."""
    corpus: np.ndarray
    """Index of its corpus part, int32 [Q]."""
    corpora: tuple[str, ...]
    """Names of the corpus parts."""
    data: np.ndarray
    """UTF-8 of all texts, uint8."""
    text_start: np.ndarray
    """Where each text begins in `data`, int64 [Q + 1]."""
    template: np.ndarray
    """Sequence, start and end byte of every template span, int64 [spans, 3], sorted by sequence and start."""
    sources: int
    """Sources with tokens, S."""
    token_start: np.ndarray
    """Where each token list begins, int64 [L + 1]."""
    token_text: pa.StringArray
    """Text of each token [T]."""
    token_end: np.ndarray
    """Byte where each token ends, int32 [T]; -1 for a token on no byte of the text."""
    token_key: np.ndarray
    """List and byte where the token counts as ending, int64 [T], not decreasing. A token on no byte counts with the
    next one that is, or with the last one when none follows."""

    @property
    def sequences(self) -> int:
        """How many there are, Q."""
        return len(self.document)

    @property
    def length(self) -> np.ndarray:
        """Bytes of each text, int64 [Q]."""
        return np.diff(self.text_start)

    def in_template(self, places: RowOrder) -> np.ndarray:
        """Whether each place ends inside a template span (after its start, up to its end), bool [P]."""
        where = _key(places.sequence, places.byte_end)
        begun = np.searchsorted(np.sort(_key(self.template[:, 0], self.template[:, 1])), where, side="left")
        ended = np.searchsorted(np.sort(_key(self.template[:, 0], self.template[:, 2])), where, side="left")
        return begun > ended

    def between_characters(self, places: RowOrder) -> np.ndarray:
        """Whether each place ends where a character ends, bool [P]; byte tokens may end inside one."""
        at = self.text_start[places.sequence] + places.byte_end
        following = self.data[np.minimum(at, len(self.data) - 1)] if len(self.data) else np.zeros(len(at), np.uint8)
        between: np.ndarray = (at == self.text_start[places.sequence + 1]) | ((following & 0xC0) != 0x80)
        return between

    def cut(self, sequence: np.ndarray, byte_start: np.ndarray, byte_end: np.ndarray) -> pa.StringArray:
        """Pieces of text [n], each from one byte of a sequence's text up to another."""
        at, start = spread(self.text_start[sequence] + byte_start, byte_end - byte_start)
        return strings(self.data[at], start)

    def tokens(self, sequence: np.ndarray, byte_start: np.ndarray, byte_end: np.ndarray) -> pa.ListArray:
        """Per piece and source, the tokens that end after `byte_start` and not after `byte_end` [n][S][tokens]."""
        lists = (sequence.astype(np.int64)[:, None] * self.sources + np.arange(self.sources)).ravel()
        # From the very beginning of a text also tokens that stand before its first byte.
        low = np.repeat(np.where(byte_start == 0, -1, byte_start), self.sources)
        first = np.searchsorted(self.token_key, _key(lists, low), side="right")
        stop = np.searchsorted(self.token_key, _key(lists, np.repeat(byte_end, self.sources)), side="right")
        at, start = spread(first, stop - first)
        token = pa.StructArray.from_arrays(
            [self.token_text.take(pa.array(at)), pa.array(self.token_end[at])], ["text", "byte_end"]
        )
        per_source = pa.ListArray.from_arrays(pa.array(start, pa.int32()), token)
        outer = np.arange(len(sequence) + 1, dtype=np.int32) * self.sources
        return pa.ListArray.from_arrays(pa.array(outer), per_source)


def read_texts(table: pa.Table, sources: int) -> Texts:
    """Flatten a store's documents. Raises StoreError when they do not fit together."""
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise StoreError(f"sequences.parquet lacks {', '.join(missing)}. The format is described in docs/formats.md.")
    if not np.array_equal(_numpy(table["sequence"]), np.arange(len(table))):
        raise StoreError("sequences.parquet: `sequence` must be 0, 1, 2, ... in order. Write the rows in that order.")
    data, text_start = _bytes_of(_whole(table["text"]))
    corpus = pc.dictionary_encode(_whole(table["corpus"]))
    tokens = _whole(table["tokens"])
    if not (np.diff(_numpy(tokens.offsets)) == sources).all():
        raise StoreError(f"sequences.parquet: `tokens` must hold one list for each of the {sources} sources.")
    inner = tokens.values.slice(tokens.offsets[0].as_py(), len(table) * sources)
    token_start = _numpy(inner.offsets).astype(np.int64)
    flat = inner.values.slice(token_start[0], token_start[-1] - token_start[0])
    token_start = token_start - token_start[0]
    token_end = _numpy(pc.struct_field(flat, "byte_end")).astype(np.int32)
    per_token = np.repeat(np.arange(len(inner)), np.diff(token_start))
    if (token_end > np.diff(text_start)[per_token // sources]).any() or (token_end < -1).any():
        raise StoreError("sequences.parquet: some token ends outside its text. Write byte ends in UTF-8 bytes, or -1.")
    return Texts(
        document=_numpy(table["document"]).astype(np.int32),
        held_out=_numpy(table["held_out"]).astype(bool),
        corpus=_numpy(corpus.indices).astype(np.int32),
        corpora=tuple(corpus.dictionary.to_pylist()),
        data=data,
        text_start=text_start,
        template=_spans(_whole(table["template_spans"])),
        sources=sources,
        token_start=token_start,
        token_text=pc.struct_field(flat, "text").cast(pa.string()),
        token_end=token_end,
        token_key=_token_keys(token_start, token_end),
    )


def check_places(texts: Texts, places: RowOrder) -> None:
    """Every place lies in a sequence there is, on a byte of its text. Raises StoreError."""
    last = int(places.sequence[-1])
    if places.sequence[0] < 0 or last >= texts.sequences:
        raise StoreError(
            f"The activation store names sequence {last}, but sequences.parquet has {texts.sequences} rows. "
            "The two do not belong together; copy or harvest the store again."
        )
    wrong = (places.byte_end < 0) | (places.byte_end > texts.length[places.sequence])
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise StoreError(
            f"A row of sequence {places.sequence[at]} in the activation store ends at byte {places.byte_end[at]}, "
            f"outside its text of {texts.length[places.sequence[at]]} bytes. Copy or harvest the store again."
        )


def spread(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices first[i], first[i] + 1, ... for every i in a row, and where each i's begin, int64 [n + 1]."""
    start = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    return np.repeat(first - start[:-1], count) + np.arange(start[-1]), start


def strings(data: np.ndarray, start: np.ndarray) -> pa.StringArray:
    """Text [n] from UTF-8 bytes in a row and where each begins [n + 1]."""
    offsets = pa.py_buffer(start.astype(np.int32))
    return pa.StringArray.from_buffers(len(start) - 1, offsets, pa.py_buffer(np.ascontiguousarray(data)))


def _token_keys(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Sortable (list, byte) of every token; see Texts.token_key."""
    owner = np.repeat(np.arange(len(start) - 1), np.diff(start))
    index = np.arange(len(end))
    real = end >= 0
    following = np.minimum.accumulate(np.where(real, index, len(end))[::-1])[::-1]
    before = np.maximum.accumulate(np.where(real, index, -1))
    has_following = following < start[1:][owner]
    has_before = before >= start[:-1][owner]
    counted = np.where(has_following, end[np.minimum(following, len(end) - 1)], 0) if len(end) else end
    counted = np.where(~has_following & has_before, end[before], counted)
    # Tokens that share a byte end, or go back, count with the furthest before them.
    return np.maximum.accumulate(_key(owner, counted)) if len(end) else np.zeros(0, np.int64)


def _key(major: np.ndarray, minor: np.ndarray) -> np.ndarray:
    key: np.ndarray = (major.astype(np.int64) << WIDE) + minor
    return key


def _spans(column: pa.ListArray) -> np.ndarray:
    """Sequence, start and end of every span in a column of lists of {start, end}."""
    owner = np.repeat(np.arange(len(column)), np.diff(_numpy(column.offsets)))
    if not len(owner):
        return np.zeros((0, 3), np.int64)
    flat = column.flatten()
    start, end = (_numpy(pc.struct_field(flat, name)) for name in ("start", "end"))
    return np.stack([owner, start, end], axis=1).astype(np.int64)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


def _bytes_of(column: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 of all texts in a row, and where each begins."""
    column = column.cast(pa.large_string())
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]


def _numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    whole = column if isinstance(column, pa.Array) else _whole(column)
    values: np.ndarray = whole.to_numpy(zero_copy_only=False)
    return values
