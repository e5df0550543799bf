"""Recovery: which spike-ins came back as a feature, and where.

A spike-in is *recovered* when some feature points its way in every source that has it and fires with it; of several
such features the one that fires most like it stands for it. Axes: F features, C spike-ins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from trainer.analysis.claims.verdict import SUPPORTED
from trainer.analysis.per_feature.decoder_norms import SHARED
from trainer.analysis.rows.codes import CodeSpool
from trainer.calibration.spike_ins import BLOCK, Planted, SpikeIn
from trainer.crosscoder.crosscoder import Crosscoder

COSINE = 0.7
"""Cosine of the feature's direction with the spike-in's, in every source that has it."""
CORRELATION = 0.5
"""Correlation of the feature's activation with the spike-in's."""


def came_back(codes: CodeSpool, crosscoder: Crosscoder, planted: Planted) -> np.ndarray:
    """The feature that stands for each spike-in, int64 [C]; -1 for one that is not recovered."""
    correlation = correlations(codes, planted)
    matches = (directions(crosscoder, planted) >= COSINE) & (correlation >= CORRELATION)
    best = np.where(matches, correlation, -np.inf)
    return np.where(matches.any(axis=0), best.argmax(axis=0), -1)


def directions(crosscoder: Crosscoder, planted: Planted) -> np.ndarray:
    """Cosine of every feature's direction with every spike-in's, the smallest over the sources that have it [F, C]."""
    smallest = np.ones((crosscoder.features, len(planted.concepts)))
    for source, wanted in planted.directions.items():
        direction = torch.nn.functional.normalize(crosscoder.decoder(source).cpu(), dim=1)
        has = wanted.any(dim=1).numpy()
        smallest[:, has] = np.minimum(smallest[:, has], (direction @ wanted.T).numpy()[:, has])
    return smallest


def correlations(codes: CodeSpool, planted: Planted) -> np.ndarray:
    """Correlation over all rows of every feature's activation with every spike-in's [F, C]; 0 where one is constant."""
    rows = codes.rows
    magnitude = sp.vstack(
        [sp.csr_array(planted.magnitudes(first, min(BLOCK, rows - first)).numpy()) for first in range(0, rows, BLOCK)]
    )
    mean, spread = _moments(magnitude)
    parts = []
    for piece in codes.pieces():
        feature = sp.csr_array((piece.value.astype(np.float64), piece.row, piece.start), shape=(piece.features, rows))
        mean_f, spread_f = _moments(feature.T.tocsr())
        covariance = (feature @ magnitude).toarray() / rows - np.outer(mean_f, mean)
        scale = np.outer(spread_f, spread)
        parts.append(np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0))
    return np.concatenate(parts)


def recall_table(
    concepts: Sequence[SpikeIn], feature: np.ndarray, owner: Sequence[str], verdict: Sequence[str]
) -> list[dict[str, Any]]:
    """How many spike-ins of every kind were planted, recovered, recovered where they belong, and supported there."""
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
            belongs = owner[found] == (concept.source or SHARED)
            row["as_claimed"] += belongs
            # Of a shared spike-in any claim is false, whoever makes it.
            row["supported"] += verdict[found] == SUPPORTED and (belongs or concept.source is None)
    return list(rows.values())


def _moments(columns: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column."""
    rows = columns.shape[0]
    mean = np.asarray(columns.sum(axis=0)).ravel() / rows
    square = np.asarray(columns.multiply(columns).sum(axis=0)).ravel() / rows
    return mean, np.sqrt(np.maximum(square - mean**2, 0))
