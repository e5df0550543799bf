"""Passages: the stretches of text on which two models differ most, with what each made of every place, to be read."""

from collections.abc import Sequence as Many
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from trainer.baselines.divergence import Scores

SPANS = 40
"""Spans of a passage, about."""
FEWEST = 20
"""Scored spans that a passage has at least; fewer would let one strange word win."""
KEPT = 8
"""Passages kept."""
PER_DOCUMENT = 2
"""Passages of one document at most, so that one strange text does not take all places."""


class _Stretch(NamedTuple):
    """Spans `first` to `last`, the latter excluded, of one sequence."""

    scores: Scores
    first: int
    last: int
    apart: float


def passages(scores: Many[Scores], indexes: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of the table `baseline_passage`, those that differ most first; `indexes` are the pair's places in the store.

    They differ by their mean Jensen-Shannon divergence, or where there is none by the distance of both surprises,
    in nats per byte.
    """
    found = sorted((stretch for one in scores for stretch in _stretches(one)), key=lambda stretch: -stretch.apart)
    kept: list[_Stretch] = []
    for stretch in found:
        same = sum(other.scores.passage.document == stretch.scores.passage.document for other in kept)
        if same < PER_DOCUMENT and len(kept) < KEPT:
            kept.append(stretch)
    return [_row(rank, stretch, indexes) for rank, stretch in enumerate(kept)]


def _stretches(scores: Scores) -> list[_Stretch]:
    """A sequence cut into stretches of about SPANS spans, between characters, with enough to judge them by."""
    at, text = scores.passage.at, scores.passage.text
    whole = [place for place, byte in enumerate(at.tolist()) if byte == len(text) or text[byte] & 0xC0 != 0x80]
    cuts = whole[:1]
    for place in whole:
        if place - cuts[-1] >= SPANS:
            cuts.append(place)
    if whole and whole[-1] - cuts[-1] >= FEWEST:
        cuts.append(whole[-1])
    found = []
    for first, last in pairwise(cuts):
        some = slice(first, last)
        if scores.passage.scored[some].sum() >= FEWEST:
            found.append(_Stretch(scores, first, last, _apart(scores, some)))
    return found


def _apart(scores: Scores, some: slice) -> float:
    if scores.divergence is not None:
        return float(np.nanmean(scores.divergence[2, some]))
    size = scores.passage.length[some][scores.passage.scored[some]].sum()
    return float(np.nansum(np.abs(scores.surprise[1, some] - scores.surprise[0, some])) / size)


def _row(rank: int, stretch: _Stretch, indexes: tuple[int, int]) -> dict[str, Any]:
    scores, passage = stretch.scores, stretch.scores.passage
    start, end = int(passage.at[stretch.first]), int(passage.at[stretch.last])
    inside = [place for place in range(stretch.first, stretch.last) if passage.scored[place]]
    tokens = []
    for index in indexes:
        where = passage.position[index]
        tokens.append(passage.tokens[index][where[stretch.first] + 1 : where[stretch.last] + 1])
    return {
        "base": indexes[0],
        "source": indexes[1],
        "rank": rank,
        "corpus": passage.corpus,
        "sequence": passage.sequence,
        "apart": stretch.apart,
        "byte_start": start,
        "text": passage.text[start:end].decode("utf-8", "replace"),
        "tokens": tokens,
        "places": [
            {
                "byte_end": int(passage.at[place + 1]),
                "divergence": None if scores.divergence is None else float(scores.divergence[2, place]),
                "base_surprise": float(scores.surprise[0, place]),
                "source_surprise": float(scores.surprise[1, place]),
            }
            for place in inside
        ],
    }
