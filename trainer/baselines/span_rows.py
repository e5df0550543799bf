"""Joins the scores of a pair of models and of its noised copies into the table of spans."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.analysis.behaviour.span_table import SpanTable
from trainer.baselines.divergence import SpanScores


def span_table(
    scores: Sequence[SpanScores],
    noised: Sequence[Sequence[SpanScores]],
    indexes: tuple[int, int],
    tokenizers: tuple[Any, Any],
) -> SpanTable:
    """The usable spans of a pair, by sequence; `noised` are the scores of the reference and of the control, or none."""
    usable = [one.usable for one in scores]
    if noised:
        usable = [
            np.logical_and.reduce([kept, *(other[at].usable for other in noised)]) for at, kept in enumerate(usable)
        ]

    def column(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([one[..., kept] for one, kept in zip(values, usable, strict=True)], axis=-1)

    reference, control = (column([one.apart for one in other]) for other in noised) if noised else (None, None)
    apart = column([one.apart for one in scores])
    unknown = np.full(len(apart), np.nan)
    expected = column([one.expected for one in scores])
    return SpanTable(
        *indexes,
        sequence=column([np.full(len(one.usable), one.sequence.sequence) for one in scores]),
        byte_start=column([one.sequence.anchors[:-1] for one in scores]),
        byte_end=column([one.sequence.anchors[1:] for one in scores]),
        apart=apart,
        reference=unknown if reference is None else reference,
        control=unknown if control is None else control,
        surprise=column([one.surprise for one in scores]),
        expected=np.stack([_texts(tokenizer, ids) for tokenizer, ids in zip(tokenizers, expected, strict=True)]),
    )


def _texts(tokenizer: Any, ids: np.ndarray) -> np.ndarray:
    """Text of each token, object [n]."""
    known, index = np.unique(ids, return_inverse=True)
    texts = np.array([tokenizer.decode([token]) for token in known.tolist()], object)
    return texts[index] if len(ids) else np.zeros(0, object)
