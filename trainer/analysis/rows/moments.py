"""Accumulates the first and second moments of rows and features that linear readouts are solved from.

One pass serves all readouts; memory grows with features times width, not with rows. Every sum is kept per fold, so
that a readout fitted on one fold can be scored on the other. Axes: H = 2 folds, F features, W width of a source.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Codes
from trainer.kernels.sparse import SparsePattern, sum_by_feature
from trainer.store.store import Rows

FOLDS = 2
TILE = 192
"""Columns of a symmetric product computed at a time."""
SUMS = 2**26
"""Sums of f x computed at a time: a quarter of a gigabyte, however many features there are and however wide x is."""


class RowMoments:
    """First and second moments of normalised activations x."""

    def __init__(self, widths: Mapping[str, int], *, device: torch.device | str = "cpu") -> None:
        """Start with zero sums for sources of these widths."""
        self.rows = torch.zeros(FOLDS, dtype=torch.int64)
        """Rows summed [H]."""
        self.total = {source: _double(FOLDS, width, device=device) for source, width in widths.items()}
        """Per source, sum of x, fp64 [H, W]."""
        self.products = {source: _double(FOLDS, width, width, device=device) for source, width in widths.items()}
        """Per source, sum of x x', fp64 [H, W, W]; each block of rows multiplied in fp32."""
        self.between = {
            (one, other): _double(FOLDS, widths[one], widths[other], device=device)
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


class Moments:
    """First and second moments of feature activations f, and their products with normalised activations x."""

    def __init__(
        self,
        widths: Mapping[str, int],
        features: int,
        *,
        device: torch.device | str = "cpu",
        row_moments: RowMoments | None = None,
    ) -> None:
        """Start with zero sums for sources of these widths and features 0 to `features` - 1.

        Pass `row_moments` if the moments of the same rows in the same folds are known from an earlier pass.
        """
        self.widths, self.features = dict(widths), features
        self._row_moments_given = row_moments is not None
        self.row_moments = row_moments or RowMoments(widths, device=device)
        """Moments of the rows, the same for all features."""
        self.cross = {source: torch.zeros(FOLDS, features, width, device=device) for source, width in widths.items()}
        """Per source, sum of f x, fp32 [H, F, W]."""
        self.firings = torch.zeros(FOLDS, features, dtype=torch.int64, device=device)
        """Rows on which each feature fired [H, F]."""
        self.sums = _double(FOLDS, features, device=device)
        """Sum of f, fp64 [H, F]."""
        self.squares = _double(FOLDS, features, device=device)
        """Sum of f², fp64 [H, F]."""

    @torch.no_grad()
    def add(self, rows: Rows, codes: Codes, fold: Tensor) -> None:
        """Add rows: normalised activations {source: [n, W]}, firings on them, and each row's fold, int64 [n].

        The firings may be of any features, not only of a crosscoder's. Cost grows with firings, not with n times F.
        """
        fold = fold.to(codes.row.device)
        if not self._row_moments_given:
            self.row_moments.add(rows, fold)
        # Each feature is split into one per fold, so that one sparse sum fills both.
        cell = codes.feature + fold[codes.row] * self.features
        cells = FOLDS * self.features
        value = codes.value.double()

        def summed(weights: Tensor | None) -> Tensor:
            return torch.bincount(cell, weights=weights, minlength=cells).view(FOLDS, -1)

        self.firings += summed(None)
        self.sums += summed(value)
        self.squares += summed(value.square())
        pattern = SparsePattern(codes.row.contiguous(), cell, rows=codes.rows, features=cells)
        for source, cross in self.cross.items():
            for part in torch.arange(self.widths[source]).split(max(SUMS // cells, 1)):
                columns = slice(int(part[0]), int(part[-1]) + 1)
                x = rows[source][:, columns].float().contiguous()
                cross[:, :, columns] += sum_by_feature(pattern, codes.value, x).view(FOLDS, self.features, -1)


def _gram(x: Tensor) -> Tensor:
    """Gram matrix x'x [W, W] of x [n, W]; computes the upper triangle and mirrors it."""
    out = x.new_empty(x.shape[1], x.shape[1])
    for first in range(0, len(out), TILE):
        part = slice(first, first + TILE)
        out[part, first:] = x[:, part].T @ x[:, first:]
        out[first + TILE :, part] = out[part, first + TILE :].T
    return out


def _double(*shape: int, device: torch.device | str) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)
