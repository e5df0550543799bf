"""One line of text per feature for lists: its strongest context, or the one that has what was searched."""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from app.results.connection import Results
from app.results.features.search import Match, SearchWord
from app.results.features.tokens import Row, SourceTokens, token_rows

KEPT = 24
"""Tokens kept on either side of a line's middle."""
NEAR = 10
"""Tokens from the peak within which a match leaves the peak in the middle."""


@dataclass(frozen=True)
class ContextLine:
    """A line of tokens of one source around its middle."""

    rows: list[Row]
    middle: int
    """Index of the row in the middle: the peak, or what was searched where that is far from it."""
    marked: frozenset[int]
    """Rows that hold what was searched."""


@dataclass(frozen=True)
class ListExample:
    """What a list shows of a feature beside its measures."""

    line: ContextLine
    promoted: tuple[str, ...]
    """Tokens that it promotes most in its owner, strongest first."""


def examples_of(
    results: Results, features: Sequence[int], words: Sequence[SearchWord], matches: Mapping[int, Match]
) -> dict[int, ListExample]:
    """The example of each of these features that ever fired, with the searched words marked."""
    ranks = [matches[feature].rank if feature in matches else 0 for feature in features]
    rows = results.rows(
        """
        select e.feature, e.rank, e.shown from example e join (
            select unnest($features::integer[]) as feature, unnest($ranks::integer[]) as rank
        ) wanted on e.feature = wanted.feature and e.rank in (0, wanted.rank)
        """,
        features=list(features),
        ranks=ranks,
    )
    strongest: dict[int, dict[str, Any]] = {}
    shown: dict[int, dict[str, Any]] = {}
    for feature, rank, window in sorted(rows):
        shown[feature] = json.loads(window)
        if rank == 0:
            strongest[feature] = shown[feature]
    return {
        feature: ListExample(context_line(window, words), tuple(strongest.get(feature, window)["promoted"] or ()))
        for feature, window in shown.items()
    }


def context_line(window: Mapping[str, Any], words: Sequence[SearchWord]) -> ContextLine:
    """The line of a kept window; the middle is its peak unless all that was searched is far from it."""
    start, text = window["byte_start"], window["text"]
    # A difference of two sources has no tokens of its own.
    ends = window["ends"] or [start + len(text.encode())]
    peak = bisect_left(ends, window["peak_byte_end"])
    marked = _marked(text, start, ends, words)
    middle = peak if not marked or min(abs(index - peak) for index in marked) <= NEAR else min(marked)
    first, last = max(middle - KEPT, 0), min(middle + KEPT + 1, len(ends))
    begin = ends[first - 1] if first else start
    part = text.encode()[begin - start :]
    cuts = [begin, *ends[first:last]]
    pieces = [part[low - begin : high - begin].decode("utf-8", "replace") for low, high in pairwise(cuts)]
    rows = token_rows(
        [SourceTokens(pieces, ends[first:last])],
        dict(window["fired"]),
        scale=window["peak"],
        peak=window["peak_byte_end"],
        text=part,
        start=begin,
    )
    shown = frozenset(index - first for index in marked if first <= index < last)
    return ContextLine(rows, min(middle - first, max(len(rows) - 1, 0)), shown)


def _marked(text: str, start: int, ends: Sequence[int], words: Sequence[SearchWord]) -> set[int]:
    """Indexes of the tokens that hold a part of what was searched."""
    found: set[int] = set()
    for word in words:
        for at, end in word.spans(text):
            first, last = (start + len(text[:index].encode()) for index in (at, end))
            found.update(range(bisect_left(ends, first + 1), min(bisect_left(ends, last) + 1, len(ends))))
    return found
