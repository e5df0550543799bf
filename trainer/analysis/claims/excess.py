"""Compares how often a feature fires with how often noise would make it fire.

What a feature's owners hold beyond the other sources' linear prediction might be noise. Noise is symmetric, whatever
its shape, while a feature fires to one side. So each row is also looked at in the mirror: what the owners hold beyond
the prediction is reflected, x̂_t - (x_t - x̂_t), and the feature fires there if

    2 (w·x̂_t + v·y_t) - (w·x_t + v·y_t) >= θ

where y_t are the other sources, x̂_t what they predict of the owners x_t, w and v the encoder on either, and θ the
activation from which on it fires, less its bias. The *excess* is the number of firings over that in the mirror: near 1
for a direction that means nothing. Axes: C features, R judged rows, K groups of documents.
"""

import torch
from torch import Tensor

from trainer.analysis.claims.linear_map import LinearMap
from trainer.analysis.rows.sample import RowSample
from trainer.crosscoder.prediction import joint

BLOCK = 16384
"""Rows at a time."""


def mirrored_firings(
    sample: RowSample, linear_map: LinearMap, own: Tensor, outside: Tensor, threshold: Tensor
) -> Tensor:
    """Firings in the mirror on judged rows, by group of documents, fp32 [K, C]; NaN for features without `own` weights.

    `own` [C, W] and `outside` [C, A] are encoder weights on the map's target and given sources; `threshold` [C] is θ.
    """
    device = linear_map.covariance.device
    own, outside, threshold = own.to(device), outside.to(device), threshold.to(device)
    fired = torch.zeros(sample.clusters, len(own), device=device)
    for first in range(0, sample.judged, BLOCK):
        some = slice(first, min(first + BLOCK, sample.judged))
        rows = {name: x[some].to(device).float() for name, x in sample.rows.items()}
        predicted = linear_map.predict(rows, torch.from_numpy(sample.fold[some]).to(device))
        mirrored = (2 * predicted - joint(rows, linear_map.target)) @ own.T + joint(rows, linear_map.given) @ outside.T
        fired.index_add_(0, torch.from_numpy(sample.cluster[some]).to(device), (mirrored >= threshold).float())
    return torch.where(own.any(dim=1), fired, torch.nan).cpu()
