"""Moments: sums of products of activations and features over all rows, from which linear readouts follow.

One pass, whatever is asked afterwards: memory grows with features times width, never with rows. Every sum is kept
for two halves of the rows, so that what is fitted on one can be scored on the other. Axes: H = 2 halves, F features,
W width of a source.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.activation_store import Rows
from trainer.crosscoder import Codes
from trainer.kernels import Pattern, sum_by_feature

HALVES = 2


class Moments:
    """First and second moments of normalised activations x and feature activations f."""

    def __init__(self, widths: Mapping[str, int], features: int, *, device: torch.device | str = "cpu") -> None:
        """Nothing summed yet, for sources of these widths and features 0 to `features` - 1."""
        self.widths, self.features = dict(widths), features
        self.rows = torch.zeros(HALVES, dtype=torch.int64)
        """Rows summed [H]."""
        self.total = {source: _double(HALVES, width, device=device) for source, width in widths.items()}
        """Per source, sum of x, fp64 [H, W]."""
        self.products = {source: _double(HALVES, width, width, device=device) for source, width in widths.items()}
        """Per source, sum of x x', fp64 [H, W, W]; each block of rows multiplied in fp32."""
        self.cross = {source: torch.zeros(HALVES, features, width, device=device) for source, width in widths.items()}
        """Per source, sum of f x, fp32 [H, F, W]."""
        self.firings = torch.zeros(HALVES, features, dtype=torch.int64, device=device)
        """Rows on which each feature fired [H, F]."""
        self.sums = _double(HALVES, features, device=device)
        """Sum of f, fp64 [H, F]."""
        self.squares = _double(HALVES, features, device=device)
        """Sum of f², fp64 [H, F]."""

    @torch.no_grad()
    def add(self, rows: Rows, codes: Codes, half: Tensor) -> None:
        """Take in some rows: normalised activations {source: [n, W]}, firings on them, and each row's half int64 [n].

        The firings may be of any features, not only those of a crosscoder. They cost what is active, never n times F.
        """
        half = half.to(codes.row.device)
        self.rows += torch.bincount(half.cpu(), minlength=HALVES)
        # A feature counts as two, one for each half, so that one sparse sum fills both.
        cell = codes.feature + half[codes.row] * self.features
        cells = HALVES * self.features
        value = codes.value.double()

        def summed(weights: Tensor | None) -> Tensor:
            return torch.bincount(cell, weights=weights, minlength=cells).view(HALVES, -1)

        self.firings += summed(None)
        self.sums += summed(value)
        self.squares += summed(value.square())
        pattern = Pattern(codes.row.contiguous(), cell, rows=codes.rows, features=cells)
        for source in self.widths:
            x = rows[source].float()
            self.cross[source] += sum_by_feature(pattern, codes.value, x).view(HALVES, self.features, -1)
            for number in range(HALVES):
                mine = x[half == number]
                self.total[source][number] += mine.sum(dim=0, dtype=torch.float64)
                self.products[source][number] += (mine.T @ mine).double()


def _double(*shape: int, device: torch.device | str) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)
