"""Compares how well a feature is read out from its owner's sources and from the others.

A claim says that the owner's sources have a feature and the others lack it. Its strength compares the best linear
readout from either side. Axes: F features, S sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.analysis.rows.moments import Moments


@dataclass(frozen=True)
class ReadoutContrast:
    """Best readout scores on both sides of every claim [F]; NaN without a claim or with too few firings."""

    own: np.ndarray
    """Best readout score from the owner's sources."""
    other: np.ndarray
    """Best readout score from the other sources."""
    slack: float
    """Constant added to both scores in the ratio; see `readout_slack`."""

    @property
    def ratio(self) -> np.ndarray:
        """(other + slack) / (own + slack), negative scores clipped to 0 [F]: 0 is absent, 1 equally readable.

        The slack keeps features that no source predicts from looking exclusive.
        """
        ratio: np.ndarray = (np.maximum(self.other, 0) + self.slack) / (np.maximum(self.own, 0) + self.slack)
        return ratio

    @property
    def strength(self) -> np.ndarray:
        """One minus the ratio [F]: larger is stronger evidence for the claim."""
        return 1 - self.ratio


def readout_contrast(scores: Mapping[str, np.ndarray], holders: np.ndarray, slack: float) -> ReadoutContrast:
    """Contrast of every feature, from readout scores [F] by source and `holders`, bool [F, S], in the same order."""
    table = np.stack(list(scores.values()), axis=1)
    unknown = np.isnan(table).any(axis=1) | holders.all(axis=1) | ~holders.any(axis=1)
    own = np.where(holders, table, -np.inf).max(axis=1)
    other = np.where(holders, -np.inf, table).max(axis=1)
    return ReadoutContrast(np.where(unknown, np.nan, own), np.where(unknown, np.nan, other), slack)


def readout_slack(moments: Moments) -> float:
    """Expected loss of score by overfitting one fold: width of the widest source over the rows of a fold."""
    return max(moments.widths.values()) / max(int(moments.row_moments.rows.sum()) / 2, 1)
