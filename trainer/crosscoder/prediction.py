"""Affine prediction of one source's normalised activations from others'.

Axes: R rows, A width of what is given, W width of what is predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.crosscoder.row_moments import CentredProducts, RowMoments

RIDGE = 1e-3
"""Ridge strength, in units of the mean variance of a coordinate of what is given."""


@dataclass(frozen=True)
class Prediction:
    """What some sources tell linearly of another."""

    given: tuple[str, ...]
    weight: Tensor
    """fp32 [A, W]; the given sources side by side, in order."""
    offset: Tensor
    """fp32 [W]."""

    def __call__(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Prediction for normalised activations, fp32 [R, W]."""
        return joint(rows, self.given) @ self.weight + self.offset

    def to(self, device: torch.device) -> "Prediction":
        """The same with its tensors on a device."""
        return Prediction(self.given, self.weight.to(device), self.offset.to(device))


def joint(rows: Mapping[str, Tensor], sources: Sequence[str]) -> Tensor:
    """Activations of several sources side by side, fp32 [R, sum of widths]."""
    return torch.cat([rows[name].float() for name in sources], dim=1)


def ridge(gram: CentredProducts, cross: CentredProducts) -> tuple[Tensor, Tensor]:
    """Ridge regression from second moments: weight [A, W] and offset [W], fp64."""
    strength = RIDGE * gram.products.diagonal().mean().clamp_min(1e-30)
    identity = torch.eye(len(gram.products), dtype=torch.float64, device=gram.products.device)
    weight = torch.linalg.solve(gram.products + strength * identity, cross.products)
    return weight, cross.other_mean - cross.mean @ weight


def fit_prediction(moments: RowMoments, given: Sequence[str], target: str) -> Prediction:
    """The prediction of one source from others, fitted to all rows of the moments."""
    weight, offset = ridge(moments.joint(given, given, None), moments.joint(given, [target], None))
    return Prediction(tuple(given), weight.float(), offset.float())
