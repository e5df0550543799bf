"""Holds the harvested sequences and their tokens as flat arrays for vectorised slicing.

Axes: Q sequences, S sources, L = Q S token lists (sequence-major), T tokens of all lists concatenated, P rows in
reading order.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.analysis.rows.row_order import RowOrder
from trainer.errors import StoreError

COLUMNS = ("sequence", "document", "corpus", "held_out", "text", "template_spans", "tokens")
LISTS = 4096
"""Token lists whose sort keys are computed at a time."""
POSITION_BITS = 32
"""Low bits of a sort key, which hold the byte position; the high bits hold sequence or list."""


@dataclass(frozen=True)
class Texts:
    """The sequences of a store."""

    document: np.ndarray
    """Document each sequence was cut from, int32 [Q]."""
    held_out: np.ndarray
    """Whether the sequence was held out from training, bool [Q]."""
    corpus: np.ndarray
    """Corpus part of each sequence, index into `corpora`, int32 [Q]."""
    corpora: tuple[str, ...]
    """Names of the corpus parts."""
    data: np.ndarray
    """UTF-8 of all texts concatenated, uint8."""
    text_start: np.ndarray
    """Where each text begins in `data`, int64 [Q + 1]."""
    template: np.ndarray
    """Sequence, start and end byte of every template span, int64 [spans, 3], sorted by sequence and start."""
    sources: int
    """Number of sources with tokens, S."""
    token_start: np.ndarray
    """Where each token list begins, int64 [L + 1]."""
    token_text: pa.StringArray
    """Text of each token [T]."""
    token_end: np.ndarray
    """Byte where each token ends, int32 [T]; -1 for a token that covers no byte of the text."""
    token_key: np.ndarray
    """Sort key of list and effective byte end, int64 [T], non-decreasing. A token on no byte takes the byte end of the
    next token that does, or of the last one if none follows."""

    @property
    def sequences(self) -> int:
        """Number of sequences, Q."""
        return len(self.document)

    @property
    def length(self) -> np.ndarray:
        """Length of each text in bytes, int64 [Q]."""
        return np.diff(self.text_start)

    def in_template(self, row_order: RowOrder) -> np.ndarray:
        """Whether each row ends inside a template span (after its start, up to its end), bool [P]."""
        row_end = _key(row_order.sequence, row_order.byte_end)
        started = np.searchsorted(np.sort(_key(self.template[:, 0], self.template[:, 1])), row_end, side="left")
        ended = np.searchsorted(np.sort(_key(self.template[:, 0], self.template[:, 2])), row_end, side="left")
        return started > ended

    def at_character_ends(self, row_order: RowOrder) -> np.ndarray:
        """Whether each row ends at the end of a character, bool [P]; byte tokens may end inside one."""
        at = self.text_start[row_order.sequence] + row_order.byte_end
        following = self.data[np.minimum(at, len(self.data) - 1)] if len(self.data) else np.zeros(len(at), np.uint8)
        at_end: np.ndarray = (at == self.text_start[row_order.sequence + 1]) | ((following & 0xC0) != 0x80)
        return at_end

    def cut(self, sequence: np.ndarray, byte_start: np.ndarray, byte_end: np.ndarray) -> pa.StringArray:
        """Substrings of text [n], each from `byte_start` to `byte_end` of its sequence's text."""
        at, start = concatenated_ranges(self.text_start[sequence] + byte_start, byte_end - byte_start)
        return string_array(self.data[at], start)

    def tokens(self, sequence: np.ndarray, byte_start: np.ndarray, byte_end: np.ndarray) -> pa.ListArray:
        """Tokens of each substring and source that end in (byte_start, byte_end], [n][S][tokens]."""
        lists = (sequence.astype(np.int64)[:, None] * self.sources + np.arange(self.sources)).ravel()
        # A substring from the start of a text includes the tokens before its first byte.
        low = np.repeat(np.where(byte_start == 0, -1, byte_start), self.sources)
        first = np.searchsorted(self.token_key, _key(lists, low), side="right")
        stop = np.searchsorted(self.token_key, _key(lists, np.repeat(byte_end, self.sources)), side="right")
        at, start = concatenated_ranges(first, stop - first)
        token = pa.StructArray.from_arrays(
            [self.token_text.take(pa.array(at)), pa.array(self.token_end[at])], ["text", "byte_end"]
        )
        per_source = pa.ListArray.from_arrays(pa.array(start, pa.int32()), token)
        outer = np.arange(len(sequence) + 1, dtype=np.int32) * self.sources
        return pa.ListArray.from_arrays(pa.array(outer), per_source)


def read_texts(table: pa.Table, sources: int) -> Texts:
    """Flatten the table of a store's sequences. Raises StoreError if it is inconsistent."""
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise StoreError(f"sequences.parquet lacks {', '.join(missing)}. The format is described in docs/formats.md.")
    if not np.array_equal(_numpy(table["sequence"]), np.arange(len(table))):
        raise StoreError("sequences.parquet: `sequence` must be 0, 1, 2, ... in order. Write the rows in that order.")
    data, text_start = _bytes_of(_contiguous(table["text"]))
    corpus = pc.dictionary_encode(_contiguous(table["corpus"]))
    tokens = _contiguous(table["tokens"])
    if not (np.diff(_numpy(tokens.offsets)) == sources).all():
        raise StoreError(f"sequences.parquet: `tokens` must hold one list for each of the {sources} sources.")
    inner = tokens.values.slice(tokens.offsets[0].as_py(), len(table) * sources)
    token_start = _numpy(inner.offsets).astype(np.int64)
    flat = inner.values.slice(token_start[0], token_start[-1] - token_start[0])
    token_start = token_start - token_start[0]
    token_end = _numpy(pc.struct_field(flat, "byte_end")).astype(np.int32)
    length_of_list = np.diff(text_start).astype(np.int32).repeat(sources)
    if (token_end > np.repeat(length_of_list, np.diff(token_start))).any() or (token_end < -1).any():
        raise StoreError("sequences.parquet: a token ends outside its text. Write byte ends in UTF-8 bytes, or -1.")
    return Texts(
        document=_numpy(table["document"]).astype(np.int32),
        held_out=_numpy(table["held_out"]).astype(bool),
        corpus=_numpy(corpus.indices).astype(np.int32),
        corpora=tuple(corpus.dictionary.to_pylist()),
        data=data,
        text_start=text_start,
        template=_spans(_contiguous(table["template_spans"])),
        sources=sources,
        token_start=token_start,
        token_text=pc.struct_field(flat, "text").cast(pa.string()),
        token_end=token_end,
        token_key=_token_keys(token_start, token_end),
    )


def check_row_order(texts: Texts, row_order: RowOrder) -> None:
    """Raise StoreError unless every row lies in an existing sequence and ends within its text."""
    last = int(row_order.sequence[-1])
    if row_order.sequence[0] < 0 or last >= texts.sequences:
        raise StoreError(
            f"The activation store names sequence {last}, but sequences.parquet has {texts.sequences} rows. "
            "The two do not belong together; copy or harvest the store again."
        )
    wrong = (row_order.byte_end < 0) | (row_order.byte_end > texts.length[row_order.sequence])
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        sequence, byte_end = row_order.sequence[at], row_order.byte_end[at]
        raise StoreError(
            f"A row of sequence {sequence} in the activation store ends at byte {byte_end}, "
            f"outside its text of {texts.length[sequence]} bytes. Copy or harvest the store again."
        )


def concatenated_ranges(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges first[i] ... first[i] + count[i] - 1 concatenated, and where each begins, int64 [n + 1]."""
    start = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    return np.repeat(first - start[:-1], count) + np.arange(start[-1]), start


def string_array(data: np.ndarray, start: np.ndarray) -> pa.StringArray:
    """Strings [n] from concatenated UTF-8 bytes and where each begins [n + 1]."""
    offsets = pa.py_buffer(start.astype(np.int32))
    return pa.StringArray.from_buffers(len(start) - 1, offsets, pa.py_buffer(np.ascontiguousarray(data)))


def _token_keys(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Sort key (list, byte end) of every token; see `Texts.token_key`. Some lists at a time, to bound the memory."""
    key = np.empty(len(end), np.int64)
    for first in range(0, len(start) - 1, LISTS):
        some = start[first : first + LISTS + 1]
        tokens = slice(some[0], some[-1])
        key[tokens] = (first << POSITION_BITS) + _token_keys_of(some - some[0], end[tokens])
    return key


def _token_keys_of(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Sort keys of the tokens of a few lists, counted from the first of them."""
    list_of_token = np.repeat(np.arange(len(start) - 1), np.diff(start))
    index = np.arange(len(end))
    on_text = end >= 0
    following = np.minimum.accumulate(np.where(on_text, index, len(end))[::-1])[::-1]
    before = np.maximum.accumulate(np.where(on_text, index, -1))
    has_following = following < start[1:][list_of_token]
    has_before = before >= start[:-1][list_of_token]
    effective_end = np.where(has_following, end[np.minimum(following, len(end) - 1)], 0) if len(end) else end
    effective_end = np.where(~has_following & has_before, end[before], effective_end)
    # Tokens whose byte end does not advance take the largest byte end before them.
    return np.maximum.accumulate(_key(list_of_token, effective_end)) if len(end) else np.zeros(0, np.int64)


def _key(major: np.ndarray, minor: np.ndarray) -> np.ndarray:
    key: np.ndarray = (major.astype(np.int64) << POSITION_BITS) + minor
    return key


def _spans(column: pa.ListArray) -> np.ndarray:
    """Sequence, start and end byte of every span, int64 [spans, 3], from a column of lists of {start, end}."""
    sequence = np.repeat(np.arange(len(column)), np.diff(_numpy(column.offsets)))
    if not len(sequence):
        return np.zeros((0, 3), np.int64)
    flat = column.flatten()
    start, end = (_numpy(pc.struct_field(flat, name)) for name in ("start", "end"))
    return np.stack([sequence, start, end], axis=1).astype(np.int64)


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    """A column as one contiguous array."""
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _bytes_of(column: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 of all texts concatenated, and where each begins, int64 [n + 1]."""
    column = column.cast(pa.large_string())
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]


def _numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    array = column if isinstance(column, pa.Array) else _contiguous(column)
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values
