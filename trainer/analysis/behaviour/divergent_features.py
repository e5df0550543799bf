"""Picks the features where two models differ most, on text that no theme tells of already.

Only features that other trainings have found, too: of one training's features with the largest ratios hardly any came
back in another (docs/behaviour.md). As with themes, the feature whose divergence ratio has the largest lower bound is
told, and the spans where it fires are left out for the next, so that ten features are not ten shades of one.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from trainer.analysis.behaviour.divergence_ratio import Units, divergence_ratios
from trainer.analysis.behaviour.feature_divergence import FeatureDivergence
from trainer.analysis.behaviour.span_table import SpanTable
from trainer.analysis.behaviour.themes import Theme
from trainer.analysis.behaviour.windows import MIN_GROUPS, WINDOW, TextWindows

MAX_FEATURES = 6
"""Told at most: of those ranked seventh to twelfth, 5 of 12 held in a run with another seed (decision 34)."""


@dataclass(frozen=True)
class DivergentFeature:
    """A feature where two models are farther apart than elsewhere."""

    feature: int
    spans: np.ndarray
    """Spans that come where it fires, of those that it was found among, int64."""
    ratio: float
    low: float
    high: float
    groups: int
    """Groups of documents of these spans."""
    among: np.ndarray
    """Spans that it was found among, bool [N]: those of no theme, and of no feature before it."""


def divergent_features(
    divergence: FeatureDivergence,
    compared: tuple[SpanTable, TextWindows],
    themes: Collection[Theme],
    least: float,
    *,
    recurs: np.ndarray,
) -> list[DivergentFeature]:
    """Features whose ratio has a lower bound of `least` or more beside all that is told before, the strongest first.

    `recurs`, bool [F], says which features other trainings have found.
    """
    spans, windows = compared
    found: list[DivergentFeature] = []
    units = Units(spans.apart, spans.reference, windows.units.group[windows.window_of_span()], spans.control)
    told = np.unique(np.concatenate([np.zeros(0, np.int64), *(units.group[_spans_of(one, windows)] for one in themes)]))
    kept = ~np.isin(units.group, told)
    candidates = [one for one in divergence.surely_above(least) if recurs[one]]
    members = _members([divergence.spans[one] for one in candidates], len(kept))
    while len(found) < MAX_FEATURES and candidates and kept.any():
        some, left = members[:, kept], units.select(kept)
        ratios = divergence_ratios(some, left, prior=WINDOW)
        low = np.where(np.isnan(ratios.low) | (ratios.groups < MIN_GROUPS), -np.inf, ratios.low)
        best = int(low.argmax())
        if low[best] < least:
            break
        inside = np.flatnonzero(kept)[some[[best]].indices]
        numbers = float(ratios.value[best]), float(low[best]), float(ratios.high[best]), int(ratios.groups[best])
        found.append(DivergentFeature(candidates[best], inside, *numbers, kept.copy()))
        kept[inside] = False
    return found


def _spans_of(theme: Theme, windows: TextWindows) -> np.ndarray:
    """The spans of a theme's windows, bool [N]."""
    return np.isin(windows.window_of_span(), theme.windows)


def _members(spans: list[np.ndarray], count: int) -> sp.csr_matrix:
    """Which of `count` spans each candidate has, bool [C, N]."""
    indices = np.concatenate([np.zeros(0, np.int64), *spans])
    start = np.cumsum([0, *(len(one) for one in spans)])
    return sp.csr_matrix((np.ones(len(indices), bool), indices, start), (len(spans), count))
