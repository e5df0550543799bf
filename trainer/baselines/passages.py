"""Selects the passages on which two models differ most, with both models' scores at every anchor."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from trainer.baselines.divergence import SpanScores

PASSAGE_SPANS = 40
"""Approximate number of spans in a passage."""
MIN_SCORED = 20
"""Scored spans that a passage needs; with fewer, a single unusual word would decide."""
MAX_PASSAGES = 8
MAX_PER_DOCUMENT = 2
"""Passages of one document, so that one unusual document does not supply them all."""


class _Passage(NamedTuple):
    """Spans `first` to `last`, excluding the latter, of one sequence."""

    scores: SpanScores
    first: int
    last: int
    apart: float


def passage_rows(scores: Sequence[SpanScores], indexes: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of the table `baseline_passage`, most different first; `indexes` are the pair's indexes in the store.

    Passages are ranked by their mean Jensen-Shannon divergence or, where there is none, by the absolute difference of
    both models' surprisals, in nats per byte.
    """
    candidates = sorted((passage for one in scores for passage in _candidates(one)), key=lambda passage: -passage.apart)
    kept: list[_Passage] = []
    for candidate in candidates:
        same = sum(other.scores.sequence.document == candidate.scores.sequence.document for other in kept)
        if same < MAX_PER_DOCUMENT and len(kept) < MAX_PASSAGES:
            kept.append(candidate)
    return [_row(rank, passage, indexes) for rank, passage in enumerate(kept)]


def _candidates(scores: SpanScores) -> list[_Passage]:
    """Cuts a sequence at character boundaries into passages of about PASSAGE_SPANS spans, MIN_SCORED of them scored."""
    anchors, text = scores.sequence.anchors, scores.sequence.text
    boundaries = [
        index for index, byte in enumerate(anchors.tolist()) if byte == len(text) or text[byte] & 0xC0 != 0x80
    ]
    cuts = boundaries[:1]
    for boundary in boundaries:
        if boundary - cuts[-1] >= PASSAGE_SPANS:
            cuts.append(boundary)
    if boundaries and boundaries[-1] - cuts[-1] >= MIN_SCORED:
        cuts.append(boundaries[-1])
    candidates = []
    for first, last in pairwise(cuts):
        spans = slice(first, last)
        if scores.usable[spans].sum() >= MIN_SCORED:
            candidates.append(_Passage(scores, first, last, _mean_apart(scores, spans)))
    return candidates


def _mean_apart(scores: SpanScores, spans: slice) -> float:
    """How much the models differ on some spans: mean Jensen-Shannon divergence, or nats of surprisal per byte."""
    usable = scores.usable[spans]
    apart = scores.apart[spans][usable]
    return float(
        apart.mean() if scores.divergence is not None else apart.sum() / scores.sequence.lengths[spans][usable].sum()
    )


def _row(rank: int, passage: _Passage, indexes: tuple[int, int]) -> dict[str, Any]:
    scores, sequence = passage.scores, passage.scores.sequence
    start, end = int(sequence.anchors[passage.first]), int(sequence.anchors[passage.last])
    scored = [span for span in range(passage.first, passage.last) if scores.usable[span]]
    tokens = []
    for index in indexes:
        positions = sequence.positions[index]
        tokens.append(sequence.tokens[index][positions[passage.first] + 1 : positions[passage.last] + 1])
    return {
        "base": indexes[0],
        "source": indexes[1],
        "rank": rank,
        "corpus": sequence.corpus,
        "sequence": sequence.sequence,
        "apart": passage.apart,
        "byte_start": start,
        "text": sequence.text[start:end].decode("utf-8", "replace"),
        "tokens": tokens,
        "places": [
            {
                "byte_end": int(sequence.anchors[span + 1]),
                "divergence": None if scores.divergence is None else float(scores.divergence[2, span]),
                "base_surprise": float(scores.surprise[0, span]),
                "source_surprise": float(scores.surprise[1, span]),
            }
            for span in scored
        ],
    }
