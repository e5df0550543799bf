"""Finds pairs of features that fire on the same rows (twins, coactive) or are parallel (similar).

A crosscoder can split a shared concept into two features of different owners, each of which then looks exclusive.
Therefore every claim of exclusivity is compared with the features of other owners.
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
"""Least correlation of twins, which are of different owners."""
COACTIVE = 0.1
"""Least correlation of coactive features."""
SIMILAR = 0.3
"""Least cosine of similar features, which are of one owner."""


@dataclass(frozen=True)
class Neighbours:
    """Pairs of related features. Axis N: pairs, by feature, kind and similarity; F: features."""

    feature: np.ndarray
    other: np.ndarray
    kind: np.ndarray
    """Index into KINDS, int64 [N]."""
    cosine: np.ndarray
    """Largest cosine of the decoder directions over the sources both write to [N]; NaN if there are none."""
    correlation: np.ndarray
    """Correlation of activations [N]."""
    strongest_twin: np.ndarray
    """Largest correlation of each feature with one of another owner [F]; 0 if none is at least 0.1."""

    def strongest_twins(self, features: np.ndarray) -> np.ndarray:
        """Pairs of a feature of `features`, bool [F], and its strongest twin, int64 [P, 2]; none without a twin."""
        twins = self.kind == KINDS.index("twin")
        feature, first = np.unique(self.feature[twins], return_index=True)
        pairs = np.stack([feature, self.other[twins][first]], axis=1)
        selected: np.ndarray = pairs[features[feature]]
        return selected

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
    """Cosines of decoder directions: per pair, the largest over the sources that both features write to."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        """Normalise the directions of all features, one matrix of unit vectors per source."""
        self._units, self._writes = [], []
        for source in crosscoder.sources:
            direction = crosscoder.decoder(source).float()
            norm = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
            self._units.append(direction / norm.clamp_min(1e-12))
            self._writes.append(norm[:, 0] > 0)

    def positive(self, first: int, stop: int) -> np.ndarray:
        """Cosines of a range of features with all [stop - first, features]; exact if positive, else 0 or less."""
        best = self._units[0][first:stop] @ self._units[0].T
        for unit in self._units[1:]:
            best = torch.maximum(best, unit[first:stop] @ unit.T)
        cosine: np.ndarray = best.cpu().numpy()
        return cosine

    def of_pairs(self, feature: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Cosines of pairs of features [n], of any sign; NaN if there is no source that both write to."""
        best = torch.full((len(feature),), -torch.inf)
        for unit, writes in zip(self._units, self._writes, strict=True):
            cosine = torch.cat(
                [
                    (unit[left] * unit[right]).sum(dim=1)
                    for left, right in zip(_chunks(feature), _chunks(other), strict=True)
                ]
            )
            cosine[~(writes[feature] & writes[other])] = -torch.inf
            best = torch.maximum(best, cosine.cpu())
        result = best.numpy()
        return np.where(np.isfinite(result), result, np.nan)


def neighbours(coactivation: Coactivation, cosines: Cosines, owner: list[str], count: int) -> Neighbours:
    """The `count` nearest neighbours of every kind for each feature that fires, by exhaustive search.

    Twin: of another owner, correlation at least 0.3. Similar: of the same owner, cosine at least 0.3. Coactive:
    correlation at least 0.1, and neither twin nor similar.
    """
    owner_index = np.unique(np.array(owner), return_inverse=True)[1]
    alive = coactivation.deviation > 0
    strongest = np.zeros(len(owner))
    parts = []
    for first, correlation in coactivation.correlations():
        stop = first + len(correlation)
        cosine = cosines.positive(first, stop)
        other_owner = owner_index[first:stop, None] != owner_index
        row, other = np.nonzero((correlation >= COACTIVE) | ((cosine >= SIMILAR) & ~other_owner))
        valid = alive[first + row] & alive[other] & (first + row != other)
        row, other = row[valid], other[valid]
        pair_correlation, pair_cosine = correlation[row, other], cosine[row, other]
        foreign = other_owner[row, other]
        np.maximum.at(strongest, first + row[foreign], pair_correlation[foreign])
        kind = np.where(foreign & (pair_correlation >= TWIN), KINDS.index("twin"), KINDS.index("coactive"))
        kind = np.where(~foreign & (pair_cosine >= SIMILAR), KINDS.index("similar"), kind)
        similarity = np.where(kind == KINDS.index("similar"), pair_cosine, pair_correlation)
        parts.append((first + row, other, kind, similarity, pair_correlation))
    feature, other, kind, similarity, pair_correlation = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((other, -similarity, kind, feature))
    best = order[rank_within(feature[order] * len(KINDS) + kind[order]) < count]
    feature, other = feature[best], other[best]
    return Neighbours(feature, other, kind[best], cosines.of_pairs(feature, other), pair_correlation[best], strongest)


def _chunks(index: np.ndarray, size: int = 16384) -> list[np.ndarray]:
    """An index array in chunks, at least one, to bound the memory of what it selects."""
    return [index[first : first + size] for first in range(0, max(len(index), 1), size)]
