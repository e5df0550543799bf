"""Accumulates the moments of features, and their products with rows, that linear readouts are solved from.

One pass serves all readouts; memory grows with features times width, not with rows. Every sum is kept per fold, so
that a readout fitted on one fold can be scored on the other. Axes: H = 2 folds, F features, W width of a source.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Codes
from trainer.crosscoder.row_moments import FOLDS, RowMoments, double_zeros
from trainer.kernels.sparse import SparsePattern, sum_by_feature
from trainer.store.store import Rows

SUMS = 2**26
"""Sums of f x computed at a time: a quarter of a gigabyte, however many features there are and however wide x is."""


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
        self.sums = double_zeros(FOLDS, features, device=device)
        """Sum of f, fp64 [H, F]."""
        self.squares = double_zeros(FOLDS, features, device=device)
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
