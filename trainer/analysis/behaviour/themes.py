"""Finds the kinds of text on which two models differ most, each with its ratio, and what a noised copy gives instead.

*Passage themes* are found greedily: of all properties of windows (`windows`) the one whose divergence ratio has the
largest lower bound is a theme, and the groups of documents that have it are left out; then the next. So a theme is not
told again in other words. A ratio must hold against either of two noised copies, and in either half of the documents.
The same search between the base and one of them, held against the other, where there is nothing to find, says how many
as strong come up by themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from trainer.analysis.behaviour.divergence_ratio import Ratios, Units, divergence_ratios, half_ratios
from trainer.analysis.behaviour.span_table import LEAST_APART, SpanTable
from trainer.analysis.behaviour.windows import MIN_GROUPS, WINDOW, Candidate, TextWindows

MAX_THEMES = 12
MAX_NAMES = 16
"""Further properties that are kept of a theme; a word may be there twice, as what follows it is another property."""
ALIKE = 0.6
"""Share of the groups of documents of a further property, or of a feature, that must be of the theme."""
MAX_EXPECTED = 4
"""Tokens told that either model expects."""


@dataclass(frozen=True)
class Theme:
    """A kind of text on which two models are farther apart than elsewhere."""

    name: Candidate
    others: list[Candidate]
    """Further properties of the same documents, the strongest first."""
    windows: np.ndarray
    """Windows that have it, int64."""
    ratio: float
    low: float
    high: float
    groups: int
    """Groups of documents that have it."""
    among: np.ndarray
    """Windows that it was found among: those of no theme before it, bool [U]."""


def find_themes(windows: TextWindows, least: float) -> list[Theme]:
    """Themes whose ratio has a lower bound of `least` or more, the strongest first."""
    units, themes = windows.units, list[Theme]()
    if not len(units.apart) or not units.reference.sum() > 0 or not units.apart.mean() > WINDOW * LEAST_APART:
        return themes
    everywhere = divergence_ratios(windows.members, units)
    kept = np.ones(len(units.apart), bool)
    while len(themes) < MAX_THEMES and kept.any() and len(windows.candidates):
        members, left = windows.members[:, kept], units.select(kept)
        ratios = divergence_ratios(members, left)
        low = np.where(np.isnan(ratios.low) | (ratios.groups < MIN_GROUPS), -np.inf, ratios.low)
        best = _best(low, members, left, least)
        if best is None:
            break
        inside = np.flatnonzero(kept)[members[[best]].indices]
        groups = np.unique(units.group[inside])
        themes.append(
            Theme(
                windows.candidates[best],
                _others(windows, everywhere, best, groups, least),
                inside,
                float(ratios.value[best]),
                float(low[best]),
                float(ratios.high[best]),
                len(groups),
                kept.copy(),
            )
        )
        kept &= ~np.isin(units.group, groups)
    return themes


def _best(low: np.ndarray, members: sp.csr_matrix, units: Units, least: float) -> int | None:
    """The candidate with the largest lower bound whose ratio is at least the limit in either half of its documents."""
    for at in np.argsort(-low, kind="stable").tolist():
        if low[at] < least:
            return None
        if all(value >= least for value in half_ratios(members[[at]], units)):
            return int(at)
    return None


def null_themes(windows: TextWindows, least: float) -> list[Theme]:
    """Themes between the base and a noised copy, held against the other copy; of either copy, whichever gives more."""
    return max((find_themes(replace(windows, units=units), least) for units in windows.units.nulls()), key=len)


def _others(windows: TextWindows, ratios: Ratios, best: int, groups: np.ndarray, least: float) -> list[Candidate]:
    """Further candidates most of whose groups are among some groups."""
    found = []
    for at in np.argsort(-np.nan_to_num(ratios.low))[: 20 * MAX_NAMES]:
        own = np.unique(windows.units.group[windows.members[[at]].indices])
        if at != best and ratios.low[at] >= least and np.isin(own, groups).mean() >= ALIKE:
            found.append(windows.candidates[at])
    return found[:MAX_NAMES]


def expected_tokens(spans: SpanTable, inside: np.ndarray, among: np.ndarray) -> tuple[list[str], list[str]]:
    """Tokens that the base, and the source, expect more often on some spans than elsewhere, where they disagree.

    Weighted by divergence; a token counts by its weight inside times the logarithm of its lift. `inside` and `among`,
    bool [N], say which spans are meant, and which are looked at at all.
    """
    differ = among & (spans.expected[0] != spans.expected[1])
    base, source = (_typical(tokens, spans.apart, inside & differ, differ) for tokens in spans.expected)
    return base, source


def _typical(tokens: np.ndarray, weight: np.ndarray, inside: np.ndarray, whole: np.ndarray) -> list[str]:
    within, usual = _weights(tokens[inside], weight[inside]), _weights(tokens[whole], weight[whole])
    score = {token: share * np.log(share / usual[token]) for token, share in within.items() if share > usual[token]}
    return sorted(score, key=lambda token: -score[token])[:MAX_EXPECTED]


def _weights(tokens: np.ndarray, weight: np.ndarray) -> Mapping[str, float]:
    """Share of the weight that each token has."""
    names, index = np.unique(tokens.astype(str), return_inverse=True)
    shares = np.bincount(index, weight, len(names)) / max(weight.sum(), 1e-30)
    return dict(zip(names.tolist(), shares.tolist(), strict=True))
