"""Compares how often a feature fires with how often noise would make it fire.

What a feature's owners hold beyond the other sources' linear prediction might be noise. If it were Gaussian, of the
residual's covariance S and of each row's size s_t, the feature would fire on row t with probability

    Φ((w·x̂_t + v·y_t - θ) / (s_t √(w'Sw)))

where y_t are the other sources, x̂_t what they predict of the owners, w and v the encoder on either, and θ the threshold
less the bias. The *excess* is the number of firings over the sum of these probabilities: near 1 for a direction that
means nothing, larger for one that fires where noise does not. Axes: C features, R rows, K documents.
"""

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.claims.linear_map import LinearMap
from trainer.analysis.rows.sample import RowSample
from trainer.crosscoder.prediction import joint

BLOCK = 16384
"""Rows at a time."""


def expected_firings(
    sample: RowSample, linear_map: LinearMap, own: Tensor, outside: Tensor, threshold: Tensor
) -> np.ndarray:
    """Expected firings in each document if the owners held nothing but noise beyond the prediction, fp32 [K, C].

    `own` [C, W] and `outside` [C, A] are encoder weights on the map's target and given sources; `threshold` [C] is the
    activation from which on a feature fires, less its bias. NaN for features that do not read the owners.
    """
    device = linear_map.covariance.device
    own, outside, threshold = own.to(device), outside.to(device), threshold.to(device)
    deviation = ((own.double() @ linear_map.covariance) * own.double()).sum(dim=1).clamp_min(0).sqrt().float()
    reads = deviation > 0
    expected = torch.zeros(sample.clusters, len(own), device=device)
    for first in range(0, sample.size, BLOCK):
        some = slice(first, first + BLOCK)
        rows = {name: x[some].to(device).float() for name, x in sample.rows.items()}
        predicted = linear_map.predict(rows, torch.from_numpy(sample.fold[some]).to(device))
        size = linear_map.size(joint(rows, linear_map.target) - predicted)
        mean = predicted @ own.T + joint(rows, linear_map.given) @ outside.T
        chance = torch.special.ndtr((mean - threshold) / (size[:, None] * deviation.clamp_min(1e-30)))
        expected.index_add_(0, torch.from_numpy(sample.cluster[some]).to(device), chance)
    return torch.where(reads, expected, torch.nan).cpu().numpy()
