"""Normalisation: what is subtracted from and multiplied with a source's activations before the crosscoder.

Residual streams of different models differ by a factor of thirty in size, and some are nearly all mean (94 % of
the energy of Gemma 3 270M's). Without centring, the source with the larger mean gets almost no weight in the loss.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normaliser:
    """normalised = (x - mean) * scale, for one source."""

    mean: Tensor
    """What is subtracted [width], fp32."""
    scale: float
    """What the rest is multiplied with."""

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise activations [..., width]; gives fp32."""
        return (x.float() - self.mean.to(x.device)) * self.scale

    def back(self, x: Tensor) -> Tensor:
        """Undo it: normalised [..., width] to raw."""
        return x.float() / self.scale + self.mean.to(x.device)


def centred_rms(blocks: Iterable[Tensor]) -> Normaliser:
    """Subtract the mean and scale so that the squared norm is the width on average.

    Blocks [rows, width] are read once; sums are kept in fp64.
    """
    rows, total, squares = 0, torch.zeros(0, dtype=torch.float64), 0.0
    for block in blocks:
        exact = block.float()
        if not rows:
            total = torch.zeros(exact.shape[1], dtype=torch.float64)
        rows += len(exact)
        total += exact.sum(dim=0, dtype=torch.float64)
        squares += float(exact.square().sum(dim=0).double().sum())
    mean = total / rows
    variance = squares / rows - float(mean.square().sum())
    return Normaliser(mean.float(), (len(mean) / max(variance, 1e-12)) ** 0.5)


def median_norm(blocks: Iterable[Tensor], mean_width: float) -> Normaliser:
    """Keep the mean; scale so that the median norm is the square root of the mean width (arXiv 2602.11729)."""
    norms, width = [], 0
    for block in blocks:
        norms.append(torch.linalg.vector_norm(block.float(), dim=1))
        width = block.shape[1]
    return Normaliser(torch.zeros(width), mean_width**0.5 / max(float(torch.cat(norms).median()), 1e-12))
