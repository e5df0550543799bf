"""Spans: held-out text cut at the places where a token of every source ends, so that all sources can be compared on it.

Axes: T tokens of one source, N spans. Span i is the text after byte `at[i]` up to byte `at[i + 1]`, and every source
has spelt exactly that text with its tokens after position `position[i]` up to position `position[i + 1]`.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.reading.alignment import anchors, positions
from trainer.store.store import ActivationStore

LONGEST = 256
"""Spans of one sequence at most: their logits are held together, and large vocabularies are dear."""

Tokens = list[dict[str, Any]]
"""Tokens of a source in order: text, and the byte of the text where each ends, -1 for a token on no byte."""


@dataclass(frozen=True)
class Passage:
    """A sequence as every source reads it, and its spans."""

    sequence: int
    """Number of the sequence."""
    document: int
    """Number of the document it was cut from."""
    corpus: str
    text: bytes
    tokens: tuple[Tokens, ...]
    """Per source."""
    ids: tuple[np.ndarray, ...]
    """Per source, token ids int64 [T]."""
    at: np.ndarray
    """Bytes where a token of every source ends, int64 [N + 1]."""
    position: tuple[np.ndarray, ...]
    """Per source, position of the token that ends there, int64 [N + 1]."""
    scored: np.ndarray
    """Spans that are plain text in every source bool [N]: no special token, no part of a chat template."""

    @property
    def length(self) -> np.ndarray:
        """Bytes of each span, int64 [N]."""
        return np.diff(self.at)

    def predicted(self, source: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of all tokens in scored spans [P], and the span that each belongs to [P]."""
        ends = self.position[source]
        first, count = ends[:-1][self.scored] + 1, np.diff(ends)[self.scored]
        span = np.repeat(np.flatnonzero(self.scored), count)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(first, count) + within, span


def held_out_passages(store: ActivationStore, specials: Many[Many[int]], sequences: int) -> list[Passage]:
    """So many held-out sequences at most, as many of every corpus part, spread evenly over each part.

    `specials` are the special token ids of every source of the store, in its order.
    """
    table = store.sequences(columns=["sequence", "corpus", "held_out"])
    assert table is not None, "a store without texts is no baseline's concern"
    held_out = table.filter(table["held_out"])
    sequence, corpus = held_out["sequence"].to_numpy(), np.asarray(held_out["corpus"].to_pylist(), object)
    parts = [sequence[corpus == name] for name in sorted(set(corpus))]
    chosen: list[int] = []
    for number, part in enumerate(parts):
        wanted = min(sequences // len(parts) + (number < sequences % len(parts)), len(part))
        chosen += part[np.arange(wanted) * len(part) // max(wanted, 1)].tolist()
    columns = ["sequence", "document", "corpus", "text", "template_spans", "tokens", "token_ids"]
    lines = store.sequences(only=sorted(chosen), columns=columns) if chosen else None
    return [] if lines is None else [passage_of(line, specials) for line in lines.to_pylist()]


def passage_of(line: dict[str, Any], specials: Many[Many[int]]) -> Passage:
    """A line of sequences.parquet as a passage."""
    ends = [np.array([token["byte_end"] for token in tokens], np.int64) for tokens in line["tokens"]]
    ids = tuple(np.array(tokens, np.int64) for tokens in line["token_ids"])
    at = anchors(ends)[: LONGEST + 1]
    position = tuple(positions(one, at) for one in ends)
    scored = ~_touched(at, line["template_spans"])
    for mine, where, special in zip(ids, position, specials, strict=True):
        before = np.concatenate([[0], np.cumsum(np.isin(mine, special))])
        scored &= np.diff(before[where + 1]) == 0
    return Passage(
        sequence=line["sequence"],
        document=line["document"],
        corpus=line["corpus"],
        text=line["text"].encode(),
        tokens=tuple(line["tokens"]),
        ids=ids,
        at=at,
        position=position,
        scored=scored,
    )


def _touched(at: np.ndarray, template_spans: Many[dict[str, int]]) -> np.ndarray:
    """Whether any byte of each span belongs to a role header, which sources with a template spell otherwise."""
    touched = np.zeros(max(len(at) - 1, 0), bool)
    for span in template_spans:
        touched |= (at[:-1] < span["end"]) & (at[1:] > span["start"])
    return touched
