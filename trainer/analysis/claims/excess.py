"""Compares how strongly a feature fires with how strongly noise would make it fire.

What a feature's owners hold beyond the other sources' linear prediction might be noise. Noise is symmetric, whatever
its shape, while a feature fires to one side. So each row is also looked at in the mirror: what the owners hold beyond
the prediction is reflected, x̂_t - (x_t - x̂_t), and the feature's activation there is

    2 (w·x̂_t + v·y_t) - (w·x_t + v·y_t) + b

where y_t are the other sources, x̂_t what they predict of the owners x_t, w, v and b the encoder. The *energy* is the
sum of the squares of the activations with which it fires: what the feature explains, in units of its direction. The
*excess* is the energy over that in the mirror: near 1 for a direction that means nothing.

Firings alone would not do: thresholds are low, so that a rare feature's strong firings come with more weak ones, which
noise gives, and more in the mirror, since its encoder is turned away from other features. Axes: C features, R judged
rows, K groups of documents.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.analysis.claims.linear_map import LinearMap
from trainer.analysis.rows.sample import RowSample
from trainer.crosscoder.prediction import joint

BLOCK = 16384
"""Rows at a time."""


class Detectors(NamedTuple):
    """What makes features fire: weights on a map's target and given sources, and thresholds."""

    own: Tensor
    """Encoder on the target [C, W]."""
    outside: Tensor
    """Encoder on the given sources [C, A]."""
    threshold: Tensor
    """Activation from which on it fires, less its bias [C]."""
    least: Tensor
    """The same with its bias [C]."""

    def to(self, device: torch.device) -> "Detectors":
        """The same on a device, fp32."""
        return Detectors(*(part.to(device).float() for part in self))

    def energy(self, score: Tensor) -> Tensor:
        """Squared activation where it fires, else 0 [R, C], of activations less the bias [R, C]."""
        return torch.where(score >= self.threshold, (score - self.threshold + self.least).square(), 0.0)


class Energies(NamedTuple):
    """Energy on judged rows by group of documents, fp64 [K, C]; NaN for features that do not read the target."""

    observed: Tensor
    mirrored: Tensor


def energies(sample: RowSample, linear_map: LinearMap, detectors: Detectors) -> Energies:
    """Energy of every feature as it is, and in the mirror."""
    device = linear_map.covariance.device
    detectors = detectors.to(device)
    sums = torch.zeros(2, sample.clusters, len(detectors.own), dtype=torch.float64, device=device)
    for first in range(0, sample.judged, BLOCK):
        some = slice(first, min(first + BLOCK, sample.judged))
        rows = {name: x[some].to(device).float() for name, x in sample.rows.items()}
        cluster = torch.from_numpy(sample.cluster[some]).to(device)
        predicted = linear_map.predict(rows, torch.from_numpy(sample.fold[some]).to(device))
        told = joint(rows, linear_map.given) @ detectors.outside.T
        score = joint(rows, linear_map.target) @ detectors.own.T + told
        for part, seen in zip(sums, (score, 2 * (predicted @ detectors.own.T + told) - score), strict=True):
            part.index_add_(0, cluster, detectors.energy(seen).double())
    observed, mirrored = torch.where(detectors.own.any(dim=1), sums, torch.nan).cpu()
    return Energies(observed, mirrored)
