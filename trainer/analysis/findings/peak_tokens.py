"""Names a feature by the tokens at which it fires most."""

import numpy as np

from trainer.analysis.findings.reported import Reported

PEAKS, TOP = 3, 30
"""Tokens told of a feature, of so many of its strongest firings."""


def peak_tokens(feature: int, reported: Reported) -> list[str]:
    """The tokens at which a feature fires most, in its owner's tokens, else in the first source's.

    None without texts, or for a feature that never fires.
    """
    texts, row_order = reported.metadata.texts, reported.metadata.row_order
    firings = reported.codes.read(feature, feature + 1)
    if texts is None or row_order is None or not len(firings.row):
        return []
    owner, sources = reported.owner[feature], reported.sources[: texts.sources]
    source = sources.index(owner) if owner in sources else 0
    row = firings.row[np.argsort(-firings.value, kind="stable")[:TOP]]
    at = row if row_order.position_of_row is None else row_order.position_of_row[row]
    end = row_order.byte_end[at].astype(np.int64)
    tokens = texts.tokens(row_order.sequence[at].astype(np.int64), end - 1, end).to_pylist()
    last = [one[source][-1]["text"] for one in tokens if one[source]]
    names, count = np.unique(np.array(last, object).astype(str), return_counts=True)
    most: list[str] = names[np.argsort(-count, kind="stable")[:PEAKS]].tolist()
    return most


def peaks_in_words(feature: int, reported: Reported) -> str:
    """“fires at …”, or the feature's number where its tokens are not known."""
    tokens = peak_tokens(feature, reported)
    return f"fires at {', '.join(f'“{token}”' for token in tokens)}" if tokens else f"feature {feature}"
