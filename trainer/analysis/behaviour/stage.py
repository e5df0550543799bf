"""Compares the models' behaviour: on which kinds of text, and at which features, their predictions differ most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.analysis.behaviour.divergent_features import DivergentFeature, divergent_features
from trainer.analysis.behaviour.feature_divergence import FeatureDivergence, feature_divergence
from trainer.analysis.behaviour.span_table import SpanTable
from trainer.analysis.behaviour.themes import Theme, find_themes, null_themes
from trainer.analysis.behaviour.windows import TextWindows, cut_windows
from trainer.analysis.per_feature.firings import RowMetadata
from trainer.analysis.rows.codes import CodeSpool


@dataclass(frozen=True)
class PairBehaviour:
    """What is known of the predictions of one pair of models."""

    spans: SpanTable
    windows: TextWindows
    themes: list[Theme]
    in_null: list[Theme]
    """Themes between the base and a noised copy."""
    features: FeatureDivergence
    divergent: list[DivergentFeature]
    """Features that are told beside the themes."""

    def null_rows(self, least: float) -> list[dict[str, object]]:
        """Rows of the table `behaviour_null`."""
        known = ~np.isnan(self.features.ratios.value)
        pair = {"base": self.spans.base, "source": self.spans.source}
        counts = [
            ("passage", len(self.windows.candidates), len(self.themes), len(self.in_null)),
            (
                "feature",
                int(known.sum()),
                *(int((low >= least).sum()) for low in (self.features.ratios.low, self.features.control)),
            ),
        ]
        return [
            {"kind": kind, **pair, "candidates": candidates, "reported": reported, "in_null": in_null}
            for kind, candidates, reported, in_null in counts
        ]


def compare_behaviour(
    tables: Sequence[SpanTable],
    metadata: RowMetadata,
    codes: CodeSpool,
    group_of: np.ndarray | None,
    least: float,
    *,
    recurs: np.ndarray,
) -> list[PairBehaviour]:
    """Compare every pair of models that has noised copies to hold it against; none for a store without texts.

    `group_of` is the group of documents of each sequence, `least` the lower bound that a theme's ratio needs. `recurs`,
    bool [F], says which features other trainings have found.
    """
    texts, row_order = metadata.texts, metadata.row_order
    if texts is None or row_order is None or group_of is None:
        return []
    found = []
    for spans in tables:
        if not spans.has_reference:
            continue
        windows = cut_windows(spans, texts, metadata.partitions, group_of)
        themes, features = find_themes(windows, least), feature_divergence(spans, codes, row_order, group_of)
        divergent = divergent_features(features, (spans, windows), themes, least, recurs=recurs)
        found.append(PairBehaviour(spans, windows, themes, null_themes(windows, least), features, divergent))
    return found
