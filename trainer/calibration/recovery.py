"""Finds the features that recover spike-ins, and tabulates recall.

A spike-in is *recovered* if some feature has a similar direction in every source that has the spike-in and a
correlated activation; of several such features the one of largest correlation counts. Axes: F features, C spike-ins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from trainer.analysis.claims.verdict import SUPPORTED
from trainer.analysis.per_feature.decoder_norms import SHARED
from trainer.analysis.rows.codes import CodeSpool
from trainer.calibration.spike_ins import BLOCK, SpikeIn, SpikeInSet
from trainer.crosscoder.column_moments import column_moments
from trainer.crosscoder.crosscoder import Crosscoder

COSINE = 0.7
"""Least cosine of the feature's direction with the spike-in's, in every source that has the spike-in."""
CORRELATION = 0.5
"""Least correlation of the feature's activation with the spike-in's magnitude."""


def recovered_features(codes: CodeSpool, crosscoder: Crosscoder, spike_ins: SpikeInSet) -> np.ndarray:
    """Feature that recovers each spike-in, int64 [C]; -1 if none does."""
    correlation = activation_correlations(codes, spike_ins)
    matches = (direction_cosines(crosscoder, spike_ins) >= COSINE) & (correlation >= CORRELATION)
    best = np.where(matches, correlation, -np.inf)
    return np.where(matches.any(axis=0), best.argmax(axis=0), -1)


def direction_cosines(crosscoder: Crosscoder, spike_ins: SpikeInSet) -> np.ndarray:
    """Cosine of every feature's direction with every spike-in's [F, C], smallest over the sources with the spike-in.

    A residual dictionary writes one source, and is compared there alone: a shared spike-in that comes up in it stands
    behind a false claim.
    """
    smallest = np.full((crosscoder.features, len(spike_ins.concepts)), np.inf)
    for source, spike_in_direction in spike_ins.directions.items():
        direction = torch.nn.functional.normalize(crosscoder.decoder(source).cpu(), dim=1)
        has = spike_in_direction.any(dim=1).numpy()
        compared = np.concatenate(
            [np.full(g.features, source in g.writes or not crosscoder.predictions) for g in crosscoder.groups]
        )
        at = np.ix_(compared, has)
        smallest[at] = np.minimum(smallest[at], (direction @ spike_in_direction.T).numpy()[at])
    return np.where(np.isinf(smallest), 0.0, smallest)


def activation_correlations(codes: CodeSpool, spike_ins: SpikeInSet) -> np.ndarray:
    """Correlation over all rows of every feature's activation with every spike-in's magnitude [F, C]; 0 if constant."""
    rows = codes.rows
    magnitude = sp.vstack(
        [sp.csr_array(spike_ins.magnitudes(first, min(BLOCK, rows - first)).numpy()) for first in range(0, rows, BLOCK)]
    )
    mean, deviation = column_moments(magnitude)
    parts = []
    for part in codes.feature_ranges():
        feature = sp.csr_array((part.value.astype(np.float64), part.row, part.start), shape=(part.features, rows))
        mean_f, deviation_f = column_moments(feature.T.tocsr())
        covariance = (feature @ magnitude).toarray() / rows - np.outer(mean_f, mean)
        scale = np.outer(deviation_f, deviation)
        parts.append(np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0))
    return np.concatenate(parts)


def recall_table(
    concepts: Sequence[SpikeIn], feature: np.ndarray, owner: Sequence[str], verdict: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of the table `spike_in`: how many spike-ins of every kind were planted, recovered, as claimed, supported."""
    rows: dict[SpikeIn, dict[str, Any]] = {}
    for concept, found in zip(concepts, feature.tolist(), strict=True):
        row = rows.setdefault(
            concept,
            {
                "placement": "shared" if concept.source is None else "exclusive",
                "source": concept.source,
                "amplitude": concept.amplitude,
                "frequency": concept.frequency,
            }
            | dict.fromkeys(("planted", "recovered", "as_claimed", "supported"), 0),
        )
        row["planted"] += 1
        if found >= 0:
            row["recovered"] += 1
            as_claimed = owner[found] == (concept.source or SHARED)
            row["as_claimed"] += as_claimed
            # Every claim about a shared spike-in is false, whatever the owner.
            row["supported"] += verdict[found] == SUPPORTED and (as_claimed or concept.source is None)
    return list(rows.values())
