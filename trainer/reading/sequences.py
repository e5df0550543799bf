"""Sequences: documents cut at anchors into pieces that fit every source's context.

A document is tokenized once per source. Pieces begin and end at anchors, so no token is cut and every
source reads the same text; each piece is run by itself with the source's BOS in front.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.reading.alignment import NO_END, Encoded, Ends, anchors, positions

SHORTEST = 8
"""Anchors a sequence has at least; shorter ones are mostly template or noise."""

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Text:
    """A document as every source sees it."""

    document: int
    corpus: str
    held_out: bool
    is_chat: bool
    text: str
    template_spans: Spans
    """Role headers, in bytes of the text."""
    encoded: tuple[Encoded, ...]
    """Per source, tokens and the byte of the text where each ends."""


@dataclass(frozen=True)
class Sequence:
    """A piece of a document that all sources read in one forward pass."""

    document: int
    corpus: str
    held_out: bool
    is_chat: bool
    text: bytes
    template_spans: Spans
    ids: tuple[NDArray[np.int64], ...]
    """Per source, token ids, BOS first where the source has one."""
    ends: tuple[Ends, ...]
    """Per source, the byte of this text where each token ends, or NO_END."""
    anchors: Ends
    """Bytes of this text where a token of every source ends."""

    def positions(self, source: int) -> NDArray[np.int64]:
        """Position in a source of the token that ends at each anchor [anchors]."""
        return positions(self.ends[source], self.anchors)

    @property
    def possible(self) -> int:
        """Anchors there could be at most."""
        return min(int((ends != NO_END).sum()) for ends in self.ends)


def cut(text: Text, *, context: int, bos: Many[int | None], most: int) -> list[Sequence]:
    """At most `most` sequences of at most `context` tokens in every source, BOS counted."""
    common = anchors([encoded.ends for encoded in text.encoded])
    if not len(common):
        return []
    at = [positions(encoded.ends, common) for encoded in text.encoded]
    whole = _between_characters(text.text.encode(), common)
    room = [context - (first is not None) for first in bos]
    pieces: list[Sequence] = []
    begin = 0
    while begin < len(common) and len(pieces) < most:
        stop = _last_that_fits(at, begin, room)
        while stop > begin and not whole[stop - 1]:
            stop -= 1
        if stop > begin and stop - begin >= SHORTEST:
            pieces.append(_piece(text, common, at, slice(begin, stop), bos))
        begin = max(stop, begin + 1)
    return pieces


def _between_characters(text: bytes, at: Ends) -> NDArray[np.bool_]:
    """Whether each byte stands between two characters rather than inside one [anchors]."""
    following: NDArray[np.uint8] = np.append(np.frombuffer(text, np.uint8), np.uint8(0))[at]
    continues: NDArray[np.bool_] = (following & 0xC0) == 0x80
    return ~continues


def _last_that_fits(at: list[NDArray[np.int64]], begin: int, room: list[int]) -> int:
    """One past the last anchor whose tokens since anchor `begin` fit in every source."""
    stops = []
    for places, tokens in zip(at, room, strict=True):
        first = 0 if begin == 0 else places[begin - 1] + 1
        stops.append(int(np.searchsorted(places, first + tokens)))
    return min(stops)


def _piece(text: Text, common: Ends, at: list[NDArray[np.int64]], span: slice, bos: Many[int | None]) -> Sequence:
    """The sequence of a span of anchors."""
    begin, stop = span.start, span.stop
    first_byte = 0 if begin == 0 else int(common[begin - 1])
    last_byte = int(common[stop - 1])
    ids, ends = [], []
    for encoded, places, first in zip(text.encoded, at, bos, strict=True):
        part = slice(0 if begin == 0 else places[begin - 1] + 1, places[stop - 1] + 1)
        own = encoded.ends[part]
        own = np.where(own == NO_END, NO_END, own - first_byte)
        ids.append(encoded.ids[part] if first is None else np.concatenate([[first], encoded.ids[part]]))
        ends.append(own if first is None else np.concatenate([[NO_END], own]))
    return Sequence(
        document=text.document,
        corpus=text.corpus,
        held_out=text.held_out,
        is_chat=text.is_chat,
        text=text.text.encode()[first_byte:last_byte],
        template_spans=_clipped(text.template_spans, first_byte, last_byte),
        ids=tuple(ids),
        ends=tuple(ends),
        anchors=common[begin:stop] - first_byte,
    )


def _clipped(spans: Spans, first: int, last: int) -> Spans:
    """The spans inside [first, last), counted from first."""
    kept = ((max(start, first), min(end, last)) for start, end in spans)
    return tuple((start - first, end - first) for start, end in kept if start < end)
