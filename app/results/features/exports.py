"""The whole filtered list, with what each feature promotes and the text it fires on, to take elsewhere."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from app.results.connection import Results
from app.results.features.feature_list import FeatureRow, every_feature
from app.results.features.query import FeatureQuery
from app.results.features.search import Search

CONTEXTS = 3
"""Strongest contexts of each feature."""
AT_A_TIME = 1000
"""Features read at a time."""


@dataclass(frozen=True)
class ExportedFeature(FeatureRow):
    """A feature of the list with its text."""

    promoted: tuple[str, ...] = ()
    """The five tokens that it promotes most in its owner, strongest first."""
    contexts: tuple[str, ...] = ()
    """Text around its strongest firings, strongest first."""


def exported_features(results: Results, query: FeatureQuery, found: Search | None) -> Iterator[ExportedFeature]:
    """Exactly the features that pass the filters, in the list's order. Raises BadQuery."""
    rows = iter(every_feature(results, query, found))
    while some := list(islice(rows, AT_A_TIME)):
        texts = _texts(results, [row.feature for row in some])
        for row in some:
            promoted, contexts = texts.get(row.feature, ((), ()))
            yield ExportedFeature(**row.__dict__, promoted=promoted, contexts=contexts)


def _texts(results: Results, features: list[int]) -> dict[int, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Promoted tokens and contexts of features that have any."""
    rows = results.rows(
        """
        select feature, rank, shown from example
        where feature in (select unnest($features::integer[])) and rank < $contexts
        """,
        features=features,
        contexts=CONTEXTS,
    )
    kept: dict[int, list[dict[str, Any]]] = {}
    for feature, _, shown in sorted(rows):
        kept.setdefault(feature, []).append(json.loads(shown))
    return {
        feature: (tuple(windows[0]["promoted"] or ()), tuple(window["text"] for window in windows))
        for feature, windows in kept.items()
    }
