"""Findings about kinds of text on which two models predict differently."""

from typing import Any

import numpy as np

from trainer.analysis.behaviour.stage import PairBehaviour
from trainer.analysis.behaviour.themes import ALIKE, Theme
from trainer.analysis.behaviour.windows import Candidate
from trainer.analysis.findings.behaviour_row import Lows, behaviour_row
from trainer.analysis.findings.finding_list import Findings
from trainer.analysis.findings.passages import passages_of
from trainer.analysis.findings.reported import Reported

NAMES = 8
"""Further properties told of a theme."""
MEMBERS = 8
"""Features told of a theme."""
HALVES = 2
"""Of the documents, in either of which a theme's ratio is above the limit."""
WORDINGS = {
    "word": "text with “{}”",
    "after": "what follows “{}”",
    "corpus": "the corpus part {}",
    "language": "text in {}",
}
"""Titles by kind of candidate; a place says itself what it is."""


def add_themes(found: Findings, pair: PairBehaviour, reported: Reported) -> None:
    """Add every theme of a pair of models."""
    limit = reported.recipe.divergence_ratio
    lows = Lows([one.low for one in pair.themes], [one.low for one in pair.in_null])
    window = pair.windows.window_of_span()
    for theme in pair.themes:
        row = {
            "kind": "passage",
            "title": theme_title(theme.name),
            "feature": None,
            "property": theme.name.kind,
            "subject": theme.name.name,
            "effect": theme.ratio,
            "low": theme.low,
            "high": theme.high,
            "fdr": lows.fdr(theme.low),
            "found_in": HALVES,
            "looked_in": HALVES,
            "documents": theme.groups,
            "names": other_names(theme),
            **behaviour_row(pair, np.isin(window, theme.windows), theme.among[window], reported.sources),
        }
        shown = passages_of(pair, _farthest_first(pair, theme), reported.metadata)
        found.add(1 - limit / theme.low, row, _members(pair, theme, limit), shown)


def theme_title(name: Candidate) -> str:
    """What a theme is, in words."""
    return WORDINGS.get(name.kind, "{}").format(name.name)


def other_names(theme: Theme) -> list[str]:
    """Further properties of a theme, in short: a word stands for itself and for what follows it."""
    names = [one.name if one.kind in ("word", "after") else theme_title(one) for one in theme.others]
    own = {theme.name.name, theme_title(theme.name)}
    return [name for name in dict.fromkeys(names) if name not in own][:NAMES]


def _farthest_first(pair: PairBehaviour, theme: Theme) -> np.ndarray:
    """The windows of a theme, those where the models are farthest apart first."""
    apart = (pair.windows.units.apart / (pair.windows.stop - pair.windows.first))[theme.windows]
    ranked: np.ndarray = theme.windows[np.argsort(-apart, kind="stable")]
    return ranked


def _members(pair: PairBehaviour, theme: Theme, limit: float) -> list[dict[str, Any]]:
    """Features with a ratio surely above the limit, most of whose groups are of a theme, the strongest first."""
    group = pair.windows.units.group
    groups, group_of_span = set(group[theme.windows].tolist()), group[pair.windows.window_of_span()]
    found: list[dict[str, Any]] = []
    for feature in pair.features.surely_above(limit):
        own = set(group_of_span[pair.features.spans[feature]].tolist())
        share = len(groups & own) / max(len(own), 1)
        if share >= ALIKE and len(found) < MEMBERS:
            found.append({"feature": feature, "share": share})
    return found
