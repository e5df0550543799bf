"""Twins: pairs of features that fire on the same rows or point the same way.

A crosscoder can split one meaning into two features of different owners, which makes a shared concept look
private. So every claim of "only in this source" is held against the features of other owners.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from trainer.analysis.pairs.coactivation import Coactivation
from trainer.analysis.rows.codes import rank_within
from trainer.crosscoder.crosscoder import Crosscoder

KINDS = ("coactive", "similar", "twin")
TWIN = 0.3
"""Correlation from which features of different owners fire on the same rows."""
COACTIVE = 0.1
"""Correlation from which features fire together more often than chance."""
SIMILAR = 0.3
"""Cosine from which directions of one owner are alike."""


@dataclass(frozen=True)
class Neighbours:
    """Features alike. Axis N: pairs by feature, kind and likeness; F: features."""

    feature: np.ndarray
    other: np.ndarray
    kind: np.ndarray
    """Index into KINDS, int64 [N]."""
    cosine: np.ndarray
    """Largest cosine of the decoder directions over sources both write to, [N]; NaN when they share none."""
    correlation: np.ndarray
    """Correlation of activations [N]."""
    strongest_twin: np.ndarray
    """Largest correlation of each feature with one of another owner [F]; 0 when none is at least 0.1."""

    def pairs_of(self, features: np.ndarray) -> np.ndarray:
        """Each of these features, bool [F], that has a twin, with its strongest one, int64 [P, 2]."""
        twins = self.kind == KINDS.index("twin")
        feature, first = np.unique(self.feature[twins], return_index=True)
        pairs = np.stack([feature, self.other[twins][first]], axis=1)
        chosen: np.ndarray = pairs[features[feature]]
        return chosen

    def columns(self) -> dict[str, np.ndarray | pa.Array]:
        """Columns of the table `neighbour`."""
        return {
            "feature": self.feature,
            "other": self.other,
            "kind": pa.array(KINDS).take(pa.array(self.kind)),
            "cosine": self.cosine,
            "correlation": self.correlation,
        }


class Cosines:
    """Cosines of decoder directions: for each pair, in the source where it is largest that both write to."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        """Take the directions of all features, one matrix of unit vectors per source."""
        self._units, self._writes = [], []
        for source in crosscoder.sources:
            direction = crosscoder.decoder(source).float()
            norm = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
            self._units.append(direction / norm.clamp_min(1e-12))
            self._writes.append(norm[:, 0] > 0)

    def positive(self, first: int, stop: int) -> np.ndarray:
        """Cosines of some features with all [stop - first, features], where they are above 0; 0 or less elsewhere."""
        best = self._units[0][first:stop] @ self._units[0].T
        for unit in self._units[1:]:
            best = torch.maximum(best, unit[first:stop] @ unit.T)
        cosine: np.ndarray = best.cpu().numpy()
        return cosine

    def of(self, feature: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Cosines of pairs [n], of any sign; NaN where they share no source."""
        best = torch.full((len(feature),), -torch.inf)
        for unit, writes in zip(self._units, self._writes, strict=True):
            cosine = torch.cat(
                [(unit[one] * unit[two]).sum(dim=1) for one, two in zip(_parts(feature), _parts(other), strict=True)]
            )
            cosine[~(writes[feature] & writes[other])] = -torch.inf
            best = torch.maximum(best, cosine.cpu())
        found = best.numpy()
        return np.where(np.isfinite(found), found, np.nan)


def neighbours(coactivation: Coactivation, cosines: Cosines, owner: list[str], count: int) -> Neighbours:
    """The `count` most alike of every kind for each feature that fires, exactly.

    twin: of another owner, correlation at least 0.3. similar: of the same owner, cosine at least 0.3.
    coactive: correlation at least 0.1 and neither of the two.
    """
    codes = np.unique(np.array(owner), return_inverse=True)[1]
    alive = coactivation.spread > 0
    strongest = np.zeros(len(owner))
    parts = []
    for first, correlation in coactivation.correlations():
        stop = first + len(correlation)
        cosine = cosines.positive(first, stop)
        foreign = codes[first:stop, None] != codes
        row, other = np.nonzero((correlation >= COACTIVE) | ((cosine >= SIMILAR) & ~foreign))
        real = alive[first + row] & alive[other] & (first + row != other)
        row, other = row[real], other[real]
        joint, angle, apart = correlation[row, other], cosine[row, other], foreign[row, other]
        np.maximum.at(strongest, first + row[apart], joint[apart])
        kind = np.where(apart & (joint >= TWIN), KINDS.index("twin"), KINDS.index("coactive"))
        kind = np.where(~apart & (angle >= SIMILAR), KINDS.index("similar"), kind)
        parts.append((first + row, other, kind, np.where(kind == KINDS.index("similar"), angle, joint), joint))
    feature, other, kind, likeness, joint = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((other, -likeness, kind, feature))
    best = order[rank_within(feature[order] * len(KINDS) + kind[order]) < count]
    feature, other = feature[best], other[best]
    return Neighbours(feature, other, kind[best], cosines.of(feature, other), joint[best], strongest)


def _parts(index: np.ndarray, size: int = 16384) -> list[np.ndarray]:
    """An index in pieces, so that what it selects stays small; at least one piece."""
    return [index[first : first + size] for first in range(0, max(len(index), 1), size)]
