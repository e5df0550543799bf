"""Passages that show a finding."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.analysis.behaviour.stage import PairBehaviour
from trainer.analysis.per_feature.firings import RowMetadata, SequencePartition

PASSAGES = 4
"""Passages that show a finding, each of another group of documents."""


def passages_of(pair: PairBehaviour, ranked: np.ndarray, metadata: RowMetadata) -> list[dict[str, Any]]:
    """The first few of some windows where the models are farther apart than with noise, of different groups."""
    windows = pair.windows
    farther = windows.units.apart > windows.units.reference
    groups, chosen = set[int](), list[int]()
    for window in ranked.tolist():
        if windows.units.group[window] not in groups and len(chosen) < PASSAGES and (farther[window] or not chosen):
            groups.add(windows.units.group[window])
            chosen.append(window)
    return [_passage(pair, window, metadata) for window in chosen]


def _passage(pair: PairBehaviour, window: int, metadata: RowMetadata) -> dict[str, Any]:
    """A window with its neighbours in the same sequence."""
    windows, spans, texts = pair.windows, pair.spans, metadata.texts
    assert texts is not None, "behaviour is compared on texts"
    sequence = int(spans.sequence[windows.first[window]])
    near = [one for one in (window - 1, window, window + 1) if 0 <= one < len(windows.first)]
    near = [one for one in near if spans.sequence[windows.first[one]] == sequence]
    some = np.arange(windows.first[near[0]], windows.stop[near[-1]])
    start, end = int(spans.byte_start[some[0]]), int(spans.byte_end[some[-1]])
    data = texts.data[texts.text_start[sequence] : texts.text_start[sequence + 1]].tobytes()
    while start and data[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    own = slice(windows.first[window], windows.stop[window])
    bounds = (np.array([sequence]), np.array([start]), np.array([end]))
    return {
        "corpus": texts.corpora[texts.corpus[sequence]],
        "language": _language(metadata.partitions, sequence),
        "sequence": sequence,
        "apart": float(spans.apart[own].mean()),
        "reference": float(spans.reference[own].mean()),
        "byte_start": start,
        "text": data[start:end].decode("utf-8", "replace"),
        "tokens": texts.tokens(*bounds).to_pylist()[0],
        "places": [
            {
                "byte_end": int(spans.byte_end[at]),
                "divergence": float(spans.apart[at]),
                "base_surprise": float(spans.surprise[0][at]),
                "source_surprise": float(spans.surprise[1][at]),
            }
            for at in some.tolist()
        ],
    }


def _language(partitions: Sequence[SequencePartition], sequence: int) -> str:
    named: Mapping[str, str] = {one.kind: one.names[one.part[sequence]] for one in partitions}
    return named.get("language", "und")
