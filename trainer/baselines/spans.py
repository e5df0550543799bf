"""Cuts text at anchors into spans that every source tokenises completely.

Axes: T tokens of one source, N spans. Span i is the text after byte `anchors[i]` up to byte `anchors[i + 1]`; in every
source it is spelt by the tokens after position `positions[i]` up to position `positions[i + 1]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.reading.alignment import anchors, positions
from trainer.store.store import ActivationStore

MAX_SPANS = 96
"""Spans scored per sequence: their logits are in memory together, which is expensive for large vocabularies."""

Tokens = list[dict[str, Any]]
"""Tokens of a source in order: `text`, and `byte_end` in the sequence's text, -1 for a token without text."""


@dataclass(frozen=True)
class AlignedSequence:
    """A sequence with the tokens of every source, and its spans."""

    sequence: int
    """Number of the sequence."""
    document: int
    """Number of its document."""
    corpus: str
    text: bytes
    tokens: tuple[Tokens, ...]
    """Per source."""
    ids: tuple[np.ndarray, ...]
    """Per source, token ids int64 [T]."""
    anchors: np.ndarray
    """Bytes where a token of every source ends, int64 [N + 1]."""
    positions: tuple[np.ndarray, ...]
    """Per source, position of the token that ends at each anchor, int64 [N + 1]."""
    scored: np.ndarray
    """Spans that are plain text in every source, bool [N]: no special token, no part of a chat template."""

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each span, int64 [N]."""
        return np.diff(self.anchors)

    def predicted_tokens(self, source: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of all tokens in scored spans, and the span of each, both int64 [P]."""
        ends = self.positions[source]
        first, count = ends[:-1][self.scored] + 1, np.diff(ends)[self.scored]
        span = np.repeat(np.flatnonzero(self.scored), count)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(first, count) + within, span


def aligned_sequences(
    store: ActivationStore, specials: Sequence[Sequence[int]], sequences: int
) -> list[AlignedSequence]:
    """At most `sequences` sequences, equally many of every corpus part, spread evenly over each part.

    Held-out ones, and others where a part has too few of them. `specials` are the special token ids of every source, in
    the order of the store.
    """
    table = store.sequences(columns=["sequence", "corpus", "held_out"])
    assert table is not None, "baselines are measured on stores with texts only"
    sequence, held_out = table["sequence"].to_numpy(), table["held_out"].to_numpy(zero_copy_only=False)
    corpus = np.asarray(table["corpus"].to_pylist(), object)
    names = sorted(set(corpus))
    chosen: list[int] = []
    for number, name in enumerate(names):
        wanted = sequences // len(names) + (number < sequences % len(names))
        own = sequence[(corpus == name) & held_out]
        kept = own[_evenly_spaced(len(own), wanted)]
        others = sequence[(corpus == name) & ~held_out]
        more = others[_evenly_spaced(len(others), wanted - len(kept))]
        chosen += [*kept.tolist(), *more.tolist()]
    columns = ["sequence", "document", "corpus", "text", "template_spans", "tokens", "token_ids"]
    lines = store.sequences(only=sorted(chosen), columns=columns) if chosen else None
    return [] if lines is None else [align_sequence(line, specials) for line in lines.to_pylist()]


def _evenly_spaced(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` of the numbers below `count`, int64."""
    wanted = min(wanted, count)
    return np.arange(wanted) * count // max(wanted, 1)


def align_sequence(line: dict[str, Any], specials: Sequence[Sequence[int]]) -> AlignedSequence:
    """Aligns a row of sequences.parquet; `specials` are the special token ids of every source."""
    ends = [np.array([token["byte_end"] for token in tokens], np.int64) for tokens in line["tokens"]]
    ids = tuple(np.array(tokens, np.int64) for tokens in line["token_ids"])
    at = anchors(ends)[: MAX_SPANS + 1]
    anchor_positions = tuple(positions(source_ends, at) for source_ends in ends)
    scored = ~_in_role_header(at, line["template_spans"])
    for source_ids, source_positions, special in zip(ids, anchor_positions, specials, strict=True):
        special_before = np.concatenate([[0], np.cumsum(np.isin(source_ids, special))])
        scored &= np.diff(special_before[source_positions + 1]) == 0
    return AlignedSequence(
        sequence=line["sequence"],
        document=line["document"],
        corpus=line["corpus"],
        text=line["text"].encode(),
        tokens=tuple(line["tokens"]),
        ids=ids,
        anchors=at,
        positions=anchor_positions,
        scored=scored,
    )


def _in_role_header(at: np.ndarray, template_spans: Sequence[dict[str, int]]) -> np.ndarray:
    """Spans that overlap a role header, which sources with a chat template spell differently, bool [N]."""
    overlaps = np.zeros(max(len(at) - 1, 0), bool)
    for header in template_spans:
        overlaps |= (at[:-1] < header["end"]) & (at[1:] > header["start"])
    return overlaps
