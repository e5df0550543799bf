"""Accumulates the first and second moments of rows, from which linear maps between sources are solved.

Every sum is kept per fold, so that a map fitted on one fold can be applied to the other. Axes: H = 2 folds, W width
of a source.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Rows = Mapping[str, Tensor]
FOLDS = 2
TILE = 192
"""Columns of a symmetric product computed at a time."""


class RowMoments:
    """First and second moments of normalised activations x."""

    def __init__(self, widths: Mapping[str, int], *, device: torch.device | str = "cpu") -> None:
        """Start with zero sums for sources of these widths."""
        self.rows = torch.zeros(FOLDS, dtype=torch.int64)
        """Rows summed [H]."""
        self.total = {source: double_zeros(FOLDS, width, device=device) for source, width in widths.items()}
        """Per source, sum of x, fp64 [H, W]."""
        self.products = {source: double_zeros(FOLDS, width, width, device=device) for source, width in widths.items()}
        """Per source, sum of x x', fp64 [H, W, W]; each block of rows multiplied in fp32."""
        self.between = {
            (one, other): double_zeros(FOLDS, widths[one], widths[other], device=device)
            for one, other in itertools.combinations(widths, 2)
        }
        """Per pair of sources, sum of x x' between them, fp64 [H, W of one, W of the other]."""

    @torch.no_grad()
    def add(self, rows: Rows, fold: Tensor) -> None:
        """Add rows: normalised activations {source: [n, W]} and each row's fold, int64 [n]."""
        self.rows += torch.bincount(fold.cpu(), minlength=FOLDS)
        for source, total in self.total.items():
            x = rows[source].float()
            for number in range(FOLDS):
                in_fold = x[fold == number]
                total[number] += in_fold.sum(dim=0, dtype=torch.float64)
                self.products[source][number] += _gram(in_fold).double()
        for (one, other), products in self.between.items():
            for number in range(FOLDS):
                chosen = fold == number
                products[number] += (rows[one][chosen].float().T @ rows[other][chosen].float()).double()

    def joint(self, sources: Sequence[str], others: Sequence[str], fold: int | None) -> "CentredProducts":
        """Centred moments between some sources and others, side by side, on one fold or on all rows (None)."""
        part = slice(None) if fold is None else slice(fold, fold + 1)
        rows = max(int(self.rows[part].sum()), 1)
        mean, other_mean = (
            torch.cat([self.total[name][part].sum(dim=0) for name in names]) / rows for names in (sources, others)
        )
        raw = torch.cat([torch.cat([self._block(a, b, part) for b in others], dim=1) for a in sources])
        return CentredProducts(rows, mean, other_mean, raw - rows * torch.outer(mean, other_mean))

    def _block(self, one: str, other: str, part: slice) -> Tensor:
        if one == other:
            return self.products[one][part].sum(dim=0)
        if (one, other) in self.between:
            return self.between[one, other][part].sum(dim=0)
        return self.between[other, one][part].sum(dim=0).T


class CentredProducts(NamedTuple):
    """Centred sum of x y' of some rows, and the means, fp64."""

    rows: int
    mean: Tensor
    """Mean of x [X]."""
    other_mean: Tensor
    """Mean of y [Y]."""
    products: Tensor
    """[X, Y]."""


def _gram(x: Tensor) -> Tensor:
    """Gram matrix x'x [W, W] of x [n, W]; computes the upper triangle and mirrors it."""
    out = x.new_empty(x.shape[1], x.shape[1])
    for first in range(0, len(out), TILE):
        part = slice(first, first + TILE)
        out[part, first:] = x[:, part].T @ x[:, first:]
        out[first + TILE :, part] = out[part, first + TILE :].T
    return out


def double_zeros(*shape: int, device: torch.device | str) -> Tensor:
    """Zeros, fp64."""
    return torch.zeros(shape, dtype=torch.float64, device=device)
