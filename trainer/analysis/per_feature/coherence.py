"""Measures how similar a source's activations are at a feature's firings, as a warning of polysemy.

A monosemantic feature fires where the source's activations are similar; a polysemous or meaningless one fires on rows
that are no more similar than random ones. Its strongest contexts do not show that, because they are similar either
way. Coherence is a warning, not evidence: it is also low for a feature that carries little of a row's activation.
"""

import numpy as np
import torch

from trainer.analysis.rows.moments import Moments

POLYSEMOUS = 0.07
"""Coherence below which a feature is flagged as possibly polysemous. One in ten of the demo's features is below. Of
those that were read there at all activation levels, most had no single theme; above, such features are rarer."""

BLOCK = 4096
"""Features at a time."""


def coherence(moments: Moments, source: str) -> np.ndarray:
    """Mean inner product of a source's activations at two firings, over the mean squared norm of all rows, fp64 [F].

    Activations are centred on their mean over all rows and firings weighted by the feature's activation. The two
    firings are of different folds, and so of different documents, so that repeated text does not count. About 0 for
    random rows, 1 for a feature that alone determines the activations; NaN unless it fired in both folds.
    """
    rows = float(moments.row_moments.rows.sum())
    mean = moments.row_moments.total[source].sum(dim=0) / max(rows, 1)
    trace = moments.row_moments.products[source].diagonal(dim1=1, dim2=2).sum()
    mean_square_norm = float(trace / max(rows, 1) - mean.square().sum())
    weight = moments.sums
    products = []
    for start in range(0, moments.features, BLOCK):
        some = slice(start, start + BLOCK)
        cross = moments.cross[source][:, some]
        first, second = (cross[fold].double() - weight[fold, some, None] * mean for fold in (0, 1))
        products.append((first * second).sum(dim=1))
    product = torch.cat(products).cpu().numpy()
    scale = (weight[0] * weight[1]).cpu().numpy() * mean_square_norm
    result: np.ndarray = np.divide(product, scale, out=np.full(moments.features, np.nan), where=scale > 0)
    return result


def best_of_holders(values: np.ndarray, holds: np.ndarray) -> np.ndarray:
    """Largest value over the sources that have each feature [F].

    `values` and `holds` (bool, which sources have the feature) are [F, S]; NaN if no source has the feature.
    """
    best = np.where(holds & ~np.isnan(values), values, -np.inf).max(axis=1)
    return np.where(np.isfinite(best), best, np.nan)
