"""Contrast: how much better a feature can be read from the sources that claim it than from those it is denied to.

Every claim is "these sources have it, those do not". Its strength compares the best linear readout on one side with the
best on the other. Axes: F features, S sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.analysis.rows.moments import Moments


@dataclass(frozen=True)
class Contrast:
    """What the readouts say of every feature [F]; NaN where it is denied to nobody or fired too rarely."""

    own: np.ndarray
    """Best readout score among the sources that have it."""
    other: np.ndarray
    """Best readout score among those it is denied to."""
    slack: float
    """What both scores are raised by."""

    @property
    def ratio(self) -> np.ndarray:
        """The other side's score over the owner's own, raised by the slack: 0 for absent, 1 for equally readable.

        The slack is what chance costs a readout; it keeps features that hardly anybody can tell from looking exclusive.
        """
        ratio: np.ndarray = (np.maximum(self.other, 0) + self.slack) / (np.maximum(self.own, 0) + self.slack)
        return ratio

    @property
    def strength(self) -> np.ndarray:
        """One minus the ratio: larger is stronger evidence that the claim is true."""
        return 1 - self.ratio


def contrast(scores: Mapping[str, np.ndarray], holders: np.ndarray, slack: float) -> Contrast:
    """Contrast of every feature, from its readout scores [F] by source and who has it, bool [F, S], in one order."""
    table = np.stack(list(scores.values()), axis=1)
    unknown = np.isnan(table).any(axis=1) | holders.all(axis=1) | ~holders.any(axis=1)
    own = np.where(holders, table, -np.inf).max(axis=1)
    other = np.where(holders, -np.inf, table).max(axis=1)
    return Contrast(np.where(unknown, np.nan, own), np.where(unknown, np.nan, other), slack)


def slack_of(moments: Moments) -> float:
    """What chance costs a fit to half of the rows: the coordinates of the widest source over those rows."""
    return max(moments.widths.values()) / max(int(moments.of_rows.rows.sum()) / 2, 1)
