"""Coherence: how much the places where a feature fires have in common, in the activations of the sources that have it.

A feature that stands for one thing fires where the source is in much the same state; one that stands for several, or
for nothing, fires on rows that are no more alike than any two. Its strongest contexts do not show that, because those
are alike in either case. Coherence is a warning, not a finding: what carries little of a row's activation is low too.
"""

import numpy as np

from trainer.analysis.rows.moments import Moments

POLYSEMOUS = 0.07
"""Coherence below which a feature may well stand for several things. One in ten of the demo's features is below, and of
those read there at every strength, most had no single theme; above it there are such features too, only fewer."""


def coherence(moments: Moments, source: str) -> np.ndarray:
    """The mean inner product of a source's activations at two firings, over the mean squared length of all rows [F].

    Activations are taken from their mean over all rows, firings are weighted by the feature's activation, and the two
    are of different documents, one from either half, so that repeated text counts for nothing. About 0 for rows
    picked at random, 1 for a feature that alone decides what the activations are; NaN unless it fired in both halves.
    """
    rows = float(moments.of_rows.rows.sum())
    mean = moments.of_rows.total[source].sum(dim=0) / max(rows, 1)
    trace = moments.of_rows.products[source].diagonal(dim1=1, dim2=2).sum()
    length = float(trace / max(rows, 1) - mean.square().sum())
    weight = moments.sums
    here, there = (moments.cross[source][half].double() - weight[half, :, None] * mean for half in (0, 1))
    product = (here * there).sum(dim=1).cpu().numpy()
    scale = (weight[0] * weight[1]).cpu().numpy() * length
    alike: np.ndarray = np.divide(product, scale, out=np.full(moments.features, np.nan), where=scale > 0)
    return alike


def best_of_holders(values: np.ndarray, holds: np.ndarray) -> np.ndarray:
    """The largest value among the sources that have the feature [F], from values and bool of [F, S]; NaN for none."""
    best = np.where(holds & ~np.isnan(values), values, -np.inf).max(axis=1)
    return np.where(np.isfinite(best), best, np.nan)
