"""Findings about features where two models predict differently, whether or not they share the feature."""

from typing import Any

import numpy as np

from trainer.analysis.behaviour.divergent_features import DivergentFeature
from trainer.analysis.behaviour.stage import PairBehaviour
from trainer.analysis.behaviour.themes import ALIKE
from trainer.analysis.findings.behaviour_row import Lows, behaviour_row
from trainer.analysis.findings.finding_list import Findings
from trainer.analysis.findings.passages import passages_of
from trainer.analysis.findings.peak_tokens import peaks_in_words
from trainer.analysis.findings.reported import Reported
from trainer.analysis.findings.trainings import trainings

MEMBERS = 8
"""Features told together: the finding's own, and others that fire where it does."""


def add_divergent_features(found: Findings, pair: PairBehaviour, reported: Reported) -> None:
    """Add the features of a pair of models that no theme tells of."""
    limit, ratios = reported.recipe.divergence_ratio, pair.features.ratios
    lows = Lows(ratios.low[~np.isnan(ratios.low)].tolist(), pair.features.control.tolist())
    for one in pair.divergent:
        inside = np.zeros(len(one.among), bool)
        inside[one.spans] = True
        row = {
            "kind": "divergence",
            "title": peaks_in_words(one.feature, reported),
            "feature": one.feature,
            "property": None,
            "subject": None,
            "effect": one.ratio,
            "low": one.low,
            "high": one.high,
            "fdr": lows.fdr(one.low),
            "documents": one.groups,
            "names": [],
            **behaviour_row(pair, inside, one.among, reported.sources),
            **trainings(one.feature, reported),
        }
        shown = passages_of(pair, _farthest_first(pair, one), reported.metadata)
        found.add(1 - limit / one.low, row, _members(pair, one, limit), shown)


def _farthest_first(pair: PairBehaviour, one: DivergentFeature) -> np.ndarray:
    """The windows in which a feature's spans are, those where the models are farthest apart on them first."""
    windows, index = np.unique(pair.windows.window_of_span()[one.spans], return_inverse=True)
    apart = np.bincount(index, pair.spans.apart[one.spans])
    ranked: np.ndarray = windows[np.argsort(-apart, kind="stable")]
    return ranked


def _members(pair: PairBehaviour, one: DivergentFeature, limit: float) -> list[dict[str, Any]]:
    """The feature itself, then others with a ratio surely above the limit most of whose spans are of it."""
    found: list[dict[str, Any]] = [{"feature": one.feature, "share": 1.0}]
    for feature in pair.features.surely_above(limit):
        share = float(np.isin(pair.features.spans[feature], one.spans).mean())
        if feature != one.feature and share >= ALIKE and len(found) < MEMBERS:
            found.append({"feature": feature, "share": share})
    return found
