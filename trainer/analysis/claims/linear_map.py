"""Predicts sources from others by an affine map, and describes what it leaves: the residual.

The map is a ridge regression, solved from second moments on each half of the documents and applied to the other half.
The residual has one covariance S and a size per row, so that noise of the same shape can be drawn or compared with.
Axes: R rows, A width of what is given, W width of what is predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainer.crosscoder.prediction import joint, ridge
from trainer.crosscoder.row_moments import FOLDS, RowMoments

FLOOR = 1e-6
"""Least eigenvalue of S, in units of its mean: directions without residual must not blow up when whitened."""


@dataclass(frozen=True)
class LinearMap:
    """Affine prediction of one set of sources from another, fitted on each fold."""

    given: tuple[str, ...]
    target: tuple[str, ...]
    weight: tuple[Tensor, ...]
    """By fold of the fit, fp32 [A, W]."""
    offset: tuple[Tensor, ...]
    """By fold of the fit, fp32 [W]."""
    covariance: Tensor
    """Covariance S of the residual on the folds that were not fitted, fp64 [W, W]."""
    total: Tensor
    """Covariance of the target, fp64 [W, W]."""

    @cached_property
    def root(self) -> Tensor:
        """Cholesky root L of S = LL', fp32 [W, W], lower triangular."""
        floor = FLOOR * self.covariance.diagonal().mean().clamp_min(1e-30)
        identity = torch.eye(len(self.covariance), dtype=torch.float64, device=self.covariance.device)
        root: Tensor = torch.linalg.cholesky(self.covariance + floor * identity)
        return root.float()

    def predict(self, rows: Mapping[str, Tensor], fold: Tensor) -> Tensor:
        """Prediction of rows from normalised activations, each by the map of the other fold, fp32 [R, W]."""
        x = joint(rows, self.given)
        out = x.new_empty(len(x), len(self.covariance))
        for number in range(FOLDS):
            chosen = fold == number
            out[chosen] = x[chosen] @ self.weight[1 - number] + self.offset[1 - number]
        return out

    def size(self, residual: Tensor) -> Tensor:
        """Size of each row's residual: root mean square of its whitened coordinates [R]."""
        whitened: Tensor = torch.linalg.solve_triangular(self.root, residual.T, upper=False)
        return whitened.square().mean(dim=0).sqrt()


def fit_map(moments: RowMoments, given: Sequence[str], target: Sequence[str]) -> LinearMap:
    """Fit the map on each fold, and measure on the other what it leaves."""
    given, target = tuple(given), tuple(target)
    weights, offsets = [], []
    covariance = total = torch.zeros((), dtype=torch.float64)
    rows = int(moments.rows.sum())
    for fold in range(FOLDS):
        gram, cross = moments.joint(given, given, fold), moments.joint(given, target, fold)
        weight, offset = ridge(gram, cross)
        weights.append(weight.float())
        offsets.append(offset.float())
        gram, cross = moments.joint(given, given, 1 - fold), moments.joint(given, target, 1 - fold)
        square = moments.joint(target, target, 1 - fold)
        explained = weight.T @ cross.products
        shift = square.mean - offset - cross.mean @ weight
        left = square.products - explained - explained.T + weight.T @ gram.products @ weight
        covariance = covariance + left + square.rows * torch.outer(shift, shift)
        total = total + square.products
    return LinearMap(given, target, tuple(weights), tuple(offsets), covariance / rows, total / rows)
