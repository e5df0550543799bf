"""Companions: the features that a feature fires together with, and whether those keep each other's company.

A feature with one meaning fires in one kind of place, where the same others fire too, so its companions are companions
of each other. One that stands for several things has several circles that never meet. The share of pairs that do meet
is the clustering coefficient of its place in the graph of what fires together (Watts and Strogatz 1998), which tells
ambiguous words from others in the graph of what is said together (Dorow et al. 2005, "curvature"). A feature whose
meaning is split over several narrow ones has a low share as well, so this is a warning and no finding.
"""

import numpy as np

from trainer.analysis.codes import rank_within

COMPANIONS = 8
"""The strongest companions that are looked at, at most."""
FEWEST = 3
"""Companions that a feature needs for a share to mean anything."""


def cohesion(feature: np.ndarray, other: np.ndarray, correlation: np.ndarray, features: int) -> np.ndarray:
    """Share of the pairs among each feature's strongest companions that are companions too [features].

    Takes every ordered pair of companions once, with its correlation. 1 when all of them fire together, 0 when no two
    do; NaN for a feature with fewer than FEWEST.
    """
    known = np.sort(feature * features + other)
    order = np.lexsort((other, -correlation, feature))
    rank = rank_within(feature[order])
    best, rank = order[rank < COMPANIONS], rank[rank < COMPANIONS]
    circle = np.full((features, COMPANIONS), -1, np.int64)
    circle[feature[best], rank] = other[best]
    count = (circle >= 0).sum(axis=1)
    met = np.zeros(features)
    for one in range(COMPANIONS):
        for two in range(one):
            both = circle[:, one] >= 0
            key = circle[both, one] * features + circle[both, two]
            at = np.minimum(np.searchsorted(known, key), max(len(known) - 1, 0))
            met[both] += known[at] == key
    share: np.ndarray = np.divide(met, count * (count - 1) / 2, out=np.full(features, np.nan), where=count >= FEWEST)
    return share
