"""Cuts documents at anchors into sequences that fit every source's context.

A document is tokenized once per source. Sequences begin and end at anchors, so no token is cut and every source reads
the same text. Each sequence is run on its own, with the source's BOS prepended.
"""

from collections import abc
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.reading.alignment import NO_END, Ends, TokenizedText, anchors, positions

MIN_ANCHORS = 8
"""Sequences with fewer anchors are dropped: they are mostly chat template or noise."""

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TokenizedDocument:
    """A document, tokenized by every source."""

    document: int
    group: int
    """Number of the first document of its group; see `Document.group`."""
    corpus: str
    held_out: bool
    is_chat: bool
    text: str
    template_spans: Spans
    """Role headers, in bytes of the text."""
    tokenized: tuple[TokenizedText, ...]
    """Tokens and their byte ends, per source."""
    plain_because: tuple[str | None, ...] = ()
    """Per source, why its chat template could not be used for this chat; None if it was, or was not asked for."""


@dataclass(frozen=True)
class Sequence:
    """The part of a document that all sources read in one forward pass."""

    document: int
    group: int
    """Number of the first document of its group; see `Document.group`."""
    corpus: str
    held_out: bool
    is_chat: bool
    text: bytes
    template_spans: Spans
    ids: tuple[NDArray[np.int64], ...]
    """Token ids per source, beginning with BOS if the source has one."""
    ends: tuple[Ends, ...]
    """Byte of this text where each token ends, or NO_END, per source."""
    anchors: Ends
    """Bytes of this text where a token of every source ends."""

    def positions(self, source: int) -> NDArray[np.int64]:
        """Position of the token that ends at each anchor, in one source [anchors]."""
        return positions(self.ends[source], self.anchors)

    @property
    def possible(self) -> int:
        """Upper bound of the number of anchors; see `alignment.possible_anchors`."""
        return min(int((ends != NO_END).sum()) for ends in self.ends)


def cut_sequences(
    document: TokenizedDocument, *, context: int, bos_ids: abc.Sequence[int | None], max_sequences: int
) -> list[Sequence]:
    """Cut a document into at most `max_sequences` sequences of at most `context` tokens in every source, with BOS."""
    common = anchors([tokenized.ends for tokenized in document.tokenized])
    if not len(common):
        return []
    anchor_positions = [positions(tokenized.ends, common) for tokenized in document.tokenized]
    at_boundary = _at_character_boundary(document.text.encode(), common)
    max_tokens = [context - (bos is not None) for bos in bos_ids]
    sequences: list[Sequence] = []
    begin = 0
    while begin < len(common) and len(sequences) < max_sequences:
        stop = _end_of_fitting_anchors(anchor_positions, begin, max_tokens)
        while stop > begin and not at_boundary[stop - 1]:
            stop -= 1
        if stop > begin and stop - begin >= MIN_ANCHORS:
            sequences.append(_sequence(document, common, anchor_positions, slice(begin, stop), bos_ids))
        begin = max(stop, begin + 1)
    return sequences


def _at_character_boundary(text: bytes, offsets: Ends) -> NDArray[np.bool_]:
    """Whether each byte offset is a character boundary [anchors]."""
    following: NDArray[np.uint8] = np.append(np.frombuffer(text, np.uint8), np.uint8(0))[offsets]
    continues: NDArray[np.bool_] = (following & 0xC0) == 0x80
    return ~continues


def _end_of_fitting_anchors(anchor_positions: list[NDArray[np.int64]], begin: int, max_tokens: list[int]) -> int:
    """One past the last anchor up to which the tokens since anchor `begin` fit into every source's context."""
    stops = []
    for token_positions, tokens in zip(anchor_positions, max_tokens, strict=True):
        first = 0 if begin == 0 else token_positions[begin - 1] + 1
        stops.append(int(np.searchsorted(token_positions, first + tokens)))
    return min(stops)


def _sequence(
    document: TokenizedDocument,
    common: Ends,
    anchor_positions: list[NDArray[np.int64]],
    span: slice,
    bos_ids: abc.Sequence[int | None],
) -> Sequence:
    """The sequence that covers a range of anchors."""
    begin, stop = span.start, span.stop
    start_byte = 0 if begin == 0 else int(common[begin - 1])
    end_byte = int(common[stop - 1])
    ids, ends = [], []
    for tokenized, token_positions, bos in zip(document.tokenized, anchor_positions, bos_ids, strict=True):
        part = slice(0 if begin == 0 else token_positions[begin - 1] + 1, token_positions[stop - 1] + 1)
        own_ends = tokenized.ends[part]
        own_ends = np.where(own_ends == NO_END, NO_END, own_ends - start_byte)
        ids.append(tokenized.ids[part] if bos is None else np.concatenate([[bos], tokenized.ids[part]]))
        ends.append(own_ends if bos is None else np.concatenate([[NO_END], own_ends]))
    return Sequence(
        document=document.document,
        group=document.group,
        corpus=document.corpus,
        held_out=document.held_out,
        is_chat=document.is_chat,
        text=document.text.encode()[start_byte:end_byte],
        template_spans=_clip(document.template_spans, start_byte, end_byte),
        ids=tuple(ids),
        ends=tuple(ends),
        anchors=common[begin:stop] - start_byte,
    )


def _clip(spans: Spans, first: int, last: int) -> Spans:
    """The spans clipped to [first, last), relative to first."""
    kept = ((max(start, first), min(end, last)) for start, end in spans)
    return tuple((start - first, end - first) for start, end in kept if start < end)
