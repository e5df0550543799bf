"""Normalisation: what is subtracted from and multiplied with a source's activations before the crosscoder.

Residual streams of different models differ by a factor of thirty in size, and some are nearly all mean (94 % of
the energy of Gemma 3 270M's). Without centring, the source with the larger mean gets almost no weight in the loss.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Damping:
    """Some directions of one source scaled down; everything orthogonal to them stays."""

    directions: Tensor
    """Orthonormal [directions, width], fp32."""
    factors: Tensor
    """What each is multiplied with, above 0 and below 1 [directions]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Scale the directions of x [..., width] down."""
        return self._scaled(x, self.factors)

    def to(self, device: torch.device) -> "Damping":
        """The same on a device."""
        return Damping(self.directions.to(device), self.factors.to(device))

    def undone(self, x: Tensor) -> Tensor:
        """Scale the directions of x [..., width] up again."""
        return self._scaled(x, 1 / self.factors)

    def _scaled(self, x: Tensor, factors: Tensor) -> Tensor:
        along = x @ self.directions.to(x.device).T
        return x + (along * (factors.to(x.device) - 1)) @ self.directions.to(x.device)


@dataclass(frozen=True)
class Normaliser:
    """normalised = (x - mean) * scale, for one source, and during training dominant directions scaled down."""

    mean: Tensor
    """What is subtracted [width], fp32."""
    scale: float
    """What the rest is multiplied with."""
    damping: Damping | None = None
    """Never in a file: `trainer.crosscoder.fold_damping` folds it into the weights first."""

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise activations [..., width]; gives fp32."""
        normal = (x.float() - self.mean.to(x.device)) * self.scale
        return normal if self.damping is None else self.damping(normal)

    def to(self, device: torch.device) -> "Normaliser":
        """The same on a device, so that normalising there need not move it."""
        damping = None if self.damping is None else self.damping.to(device)
        return Normaliser(self.mean.to(device), self.scale, damping)

    def back(self, x: Tensor) -> Tensor:
        """Undo it: normalised [..., width] to raw."""
        normal = x.float() if self.damping is None else self.damping.undone(x.float())
        return normal / self.scale + self.mean.to(x.device)


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


def damped(normaliser: Normaliser, blocks: Iterable[Tensor], above: float) -> Normaliser:
    """Scale down the principal directions that alone hold more than a share `above` of the variance, to that share.

    The scale rises by as much as keeps the variance of the whole. Blocks [rows, width] are read once; products are
    summed in fp64.
    """
    rows, width = 0, len(normaliser.mean)
    total, products = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for block in blocks:
        normal = normaliser(block)
        rows += len(normal)
        total += normal.sum(dim=0, dtype=torch.float64)
        products += (normal.T @ normal).double()
    variances, directions = torch.linalg.eigh(products / rows - torch.outer(total, total) / rows**2)
    variances = variances.clamp_min(0)
    allowed = above * float(variances.sum())
    dominant = variances > allowed
    if not bool(dominant.any()):
        return normaliser
    factors = (allowed / variances[dominant]).sqrt()
    left = variances.sum() - variances[dominant].sum() + allowed * int(dominant.sum())
    return replace(
        normaliser,
        scale=normaliser.scale * float(variances.sum() / left) ** 0.5,
        damping=Damping(directions[:, dominant].T.contiguous().float(), factors.float()),
    )
