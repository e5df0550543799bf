"""Scores features for the default order of lists, most defensible first.

The verdict determines the tier. Within a tier claims are ordered by the margin of their evidence, and features without
a claim by how much they explain and how plainly.
"""

from dataclasses import dataclass

import numpy as np

from trainer.analysis.claims.verdict import REFUTED, SUPPORTED, UNDECIDED, UNTESTED

TIERS = {SUPPORTED: 3.0, UNDECIDED: 2.0, REFUTED: 1.0, UNTESTED: 0.0, "": 0.0}
"""Added to the score by verdict; a feature without a claim has none."""
ENOUGH_FIRINGS = 300
"""Firings at which their factor saturates."""
ENOUGH_DOCUMENTS = 30
"""Documents at which their factor saturates."""
HALVING_DENSITY = 0.2
"""Density that halves the score: what fires everywhere means little."""
MIN_ENERGY_FACTOR = 0.25
"""Factor in the limit of least energy."""
MIN_FOCUS_FACTOR = 0.5
"""Factor of a feature that fires equally often in all corpus parts."""


@dataclass(frozen=True)
class RankingInputs:
    """Inputs of the ranking, per feature [F]; NaN where unknown."""

    firings: np.ndarray
    documents: np.ndarray
    density: np.ndarray
    on_templates: np.ndarray
    """Excess share of its firings on chat templates; see `excess`."""
    on_openings: np.ndarray
    """Excess share of its firings on the first rows of sequences."""
    strongest_twin: np.ndarray
    """Largest correlation with a feature of another owner, 0 to 1."""
    energy: np.ndarray
    """Energy of the feature's contribution to the reconstruction: sum of f² times the squared decoder norms."""
    focus: np.ndarray
    """Excess share of its firings in its main corpus part."""
    margin: np.ndarray
    """How far the claim's evidence is from its thresholds; see `margins`. NaN where unknown."""


def excess(share: np.ndarray, usual: np.ndarray | float) -> np.ndarray:
    """How far shares of firings exceed the share of all rows, 0 to 1: 0 if not at all, 1 for all firings."""
    result: np.ndarray = np.clip((share - usual) / np.maximum(1 - np.asarray(usual), 1e-9), 0, 1)
    return result


def scores(owner: list[str], verdicts: list[str], evidence: RankingInputs) -> np.ndarray:
    """Score of each feature [F]: 3, 2 or 1 by the verdict of its claim, plus a part from 0 to 1.

    The part of a claim grows with its margin: a half at a threshold, 1 for the best that can be measured, 0 where
    nothing was. That of a feature without a claim is a product of factors from 0 to 1: enough firings; enough
    documents; low density; no excess of firings on chat templates or first rows; no correlated feature of another
    owner; high energy rank among features of its owner; focus on one corpus part. Unknown inputs give the best factor.
    NaN for features that never fired.
    """
    product = (
        _saturation(evidence.firings, ENOUGH_FIRINGS)
        * _saturation(evidence.documents, ENOUGH_DOCUMENTS)
        / (1 + evidence.density / HALVING_DENSITY)
        * (1 - _fill_nan(evidence.on_templates, 0))
        * (1 - _fill_nan(evidence.on_openings, 0))
        * (1 - _fill_nan(evidence.strongest_twin, 0))
        * (MIN_ENERGY_FACTOR + (1 - MIN_ENERGY_FACTOR) * _energy_rank(evidence.energy, owner))
        * (MIN_FOCUS_FACTOR + (1 - MIN_FOCUS_FACTOR) * _fill_nan(evidence.focus, 1))
    )
    tier = np.array([TIERS[verdict] for verdict in verdicts])
    part = np.where(tier > 0, _by_margin(evidence.margin), product)
    return np.where(evidence.firings > 0, part + tier, np.nan)


def _by_margin(margin: np.ndarray) -> np.ndarray:
    """Margins of any size as a part from 0 to 1, in the same order [F]; 0 where unknown."""
    below = np.minimum(margin, 0)
    part = np.where(margin < 0, 0.5 / (1 - below), 0.5 + 0.5 * np.minimum(margin, 1))
    return _fill_nan(part, 0)


def _energy_rank(energy: np.ndarray, owner: list[str]) -> np.ndarray:
    """Share of the owner's features with at most each feature's energy, in (0, 1], [F]."""
    result = np.zeros(len(energy))
    group = np.array(owner)
    for name in set(owner):
        members = group == name
        result[members] = np.searchsorted(np.sort(energy[members]), energy[members], side="right") / members.sum()
    return result


def _saturation(count: np.ndarray, enough: int) -> np.ndarray:
    """Logarithmic in the count, from 0 at none to 1 at `enough` and above."""
    factor: np.ndarray = np.clip(np.log1p(_fill_nan(count.astype(float), enough)) / np.log1p(enough), 0, 1)
    return factor


def _fill_nan(values: np.ndarray, otherwise: float) -> np.ndarray:
    return np.where(np.isnan(values), otherwise, values)
