"""Centres and scales each source's activations, and damps dominant directions.

Norms of residual streams differ between models by a factor of thirty, and in some the mean holds most of the energy
(94 % in Gemma 3 270M). Without centring, the source with the larger mean gets almost no weight in the loss.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Damping:
    """Linear map that scales some directions of one source down and leaves the orthogonal complement unchanged."""

    directions: Tensor
    """Orthonormal directions [directions, width], fp32."""
    factors: Tensor
    """Factor of each direction, between 0 and 1 [directions]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Scale the directions of x [..., width] down."""
        return self._scaled(x, self.factors)

    def to(self, device: torch.device) -> "Damping":
        """The same map with its tensors on a device."""
        return Damping(self.directions.to(device), self.factors.to(device))

    def inverse(self, x: Tensor) -> Tensor:
        """Apply the inverse map to x [..., width]."""
        return self._scaled(x, 1 / self.factors)

    def _scaled(self, x: Tensor, factors: Tensor) -> Tensor:
        coordinates = x @ self.directions.to(x.device).T
        return x + (coordinates * (factors.to(x.device) - 1)) @ self.directions.to(x.device)


@dataclass(frozen=True)
class Normaliser:
    """normalised = (x - mean) * scale, for one source; during training dominant directions are damped too."""

    mean: Tensor
    """Mean that is subtracted [width], fp32."""
    scale: float
    """Factor applied after the mean is subtracted."""
    damping: Damping | None = None
    """Never saved: `trainer.crosscoder.fold_damping` folds it into the weights first."""

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise activations [..., width]; returns fp32."""
        normal = (x.float() - self.mean.to(x.device)) * self.scale
        return normal if self.damping is None else self.damping(normal)

    def to(self, device: torch.device) -> "Normaliser":
        """The same normaliser with its tensors on a device, which saves copying them in every call."""
        damping = None if self.damping is None else self.damping.to(device)
        return Normaliser(self.mean.to(device), self.scale, damping)

    def denormalise(self, x: Tensor) -> Tensor:
        """Map normalised activations [..., width] back to raw ones."""
        normal = x.float() if self.damping is None else self.damping.inverse(x.float())
        return normal / self.scale + self.mean.to(x.device)


def centred_rms(blocks: Iterable[Tensor]) -> Normaliser:
    """Normaliser that subtracts the mean and scales the mean squared norm to the width.

    Blocks [rows, width] are read once; sums are in fp64.
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
    """Normaliser that keeps the mean and scales the median norm to the root of the mean width (arXiv 2602.11729)."""
    norms, width = [], 0
    for block in blocks:
        norms.append(torch.linalg.vector_norm(block.float(), dim=1))
        width = block.shape[1]
    return Normaliser(torch.zeros(width), mean_width**0.5 / max(float(torch.cat(norms).median()), 1e-12))


def damp_dominant_directions(normaliser: Normaliser, blocks: Iterable[Tensor], above: float) -> Normaliser:
    """Add damping of the principal directions that each hold more than a share `above` of the variance, to that share.

    The scale grows so that the total variance stays the same. Blocks [rows, width] are read once; second moments are
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
    remaining = variances.sum() - variances[dominant].sum() + allowed * int(dominant.sum())
    return replace(
        normaliser,
        scale=normaliser.scale * float(variances.sum() / remaining) ** 0.5,
        damping=Damping(directions[:, dominant].T.contiguous().float(), factors.float()),
    )
