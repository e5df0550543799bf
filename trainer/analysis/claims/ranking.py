"""Ranking: the default order of features, most defensible first.

Verdicts decide first; among features of one verdict it weighs how much there is to see.
"""

from dataclasses import dataclass

import numpy as np

from trainer.analysis.claims.verdict import REFUTED, SUPPORTED, UNDECIDED

TIERS = {SUPPORTED: 3.0, UNDECIDED: 2.0, REFUTED: 1.0, "": 0.0}
"""What a verdict adds to the score; a feature without a verdict claims nothing."""
ENOUGH_FIRINGS = 300
"""Firings from which more add nothing to a feature's standing."""
ENOUGH_DOCUMENTS = 30
"""Documents from which more add nothing."""
TOO_DENSE = 0.2
"""Density at which a feature's standing is halved: what fires everywhere means little."""
FAINT = 0.5
"""Standing left to a claim that the other side tells as well as its owner."""
LIGHT = 0.25
"""Standing left to the feature that carries least."""
SPREAD = 0.5
"""Standing left to a feature that fires in every corpus part alike."""


@dataclass(frozen=True)
class Evidence:
    """What the ranking looks at, per feature [F]; NaN where not known."""

    firings: np.ndarray
    documents: np.ndarray
    density: np.ndarray
    on_templates: np.ndarray
    """Excess of its firings on chat templates."""
    on_openings: np.ndarray
    """Excess of its firings on the first rows of sequences."""
    strongest_twin: np.ndarray
    """Largest correlation with a feature of another owner, 0 to 1."""
    energy: np.ndarray
    """How much of the rebuilt activations it carries: squared activations times squared decoder norms, summed."""
    focus: np.ndarray
    """Excess of its firings in its main corpus."""
    strength: np.ndarray
    """How much worse it is told by those it is denied to: one minus the readout ratio."""


def excess(share: np.ndarray, usual: np.ndarray | float) -> np.ndarray:
    """How far shares of firings exceed the share of all rows: 0 for no more than usual, 1 for all firings."""
    beyond: np.ndarray = np.clip((share - usual) / np.maximum(1 - np.asarray(usual), 1e-9), 0, 1)
    return beyond


def scores(owner: list[str], verdicts: list[str], evidence: Evidence) -> np.ndarray:
    """Score of each feature [F]: a product of parts from 0 to 1, plus 3, 2 or 1 by its verdict.

    The parts: enough firings; enough documents; not dense; not on chat templates or first rows more than usual; no
    feature of another owner that fires on the same rows; much energy, compared with others of its owner; one corpus
    part more than the rest; little of it told by those it is denied to. What is not known counts as good. NaN for
    features that never fired.
    """
    product = (
        _enough(evidence.firings, ENOUGH_FIRINGS)
        * _enough(evidence.documents, ENOUGH_DOCUMENTS)
        / (1 + evidence.density / TOO_DENSE)
        * (1 - _known(evidence.on_templates, 0))
        * (1 - _known(evidence.on_openings, 0))
        * (1 - _known(evidence.strongest_twin, 0))
        * (LIGHT + (1 - LIGHT) * _standing(evidence.energy, owner))
        * (SPREAD + (1 - SPREAD) * _known(evidence.focus, 1))
        * (FAINT + (1 - FAINT) * np.clip(_known(evidence.strength, 1), 0, 1))
    )
    tier = np.array([TIERS[verdict] for verdict in verdicts])
    return np.where(evidence.firings > 0, product + tier, np.nan)


def _standing(energy: np.ndarray, owner: list[str]) -> np.ndarray:
    """Share of each owner's features that carry less than each does, or as much, above 0 to 1."""
    result = np.zeros(len(energy))
    group = np.array(owner)
    for name in set(owner):
        mine = group == name
        result[mine] = np.searchsorted(np.sort(energy[mine]), energy[mine], side="right") / mine.sum()
    return result


def _enough(count: np.ndarray, enough: int) -> np.ndarray:
    """0 for none, 1 for enough, on a logarithmic scale between."""
    part: np.ndarray = np.clip(np.log1p(_known(count.astype(float), enough)) / np.log1p(enough), 0, 1)
    return part


def _known(values: np.ndarray, otherwise: float) -> np.ndarray:
    return np.where(np.isnan(values), otherwise, values)
