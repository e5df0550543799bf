"""Moments: sums of products of activations and features over all rows, from which linear readouts follow.

One pass, whatever is asked afterwards: memory grows with features times width, never with rows. Every sum is kept
for two halves of the rows, so that what is fitted on one can be scored on the other. Axes: H = 2 halves, F features,
W width of a source.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Codes
from trainer.kernels.sparse import SparsePattern, sum_by_feature
from trainer.store.store import Rows

HALVES = 2
TILE = 192
"""Columns of a symmetric product at a time."""


class RowMoments:
    """First and second moments of normalised activations x."""

    def __init__(self, widths: Mapping[str, int], *, device: torch.device | str = "cpu") -> None:
        """Nothing summed yet, for sources of these widths."""
        self.rows = torch.zeros(HALVES, dtype=torch.int64)
        """Rows summed [H]."""
        self.total = {source: _double(HALVES, width, device=device) for source, width in widths.items()}
        """Per source, sum of x, fp64 [H, W]."""
        self.products = {source: _double(HALVES, width, width, device=device) for source, width in widths.items()}
        """Per source, sum of x x', fp64 [H, W, W]; each block of rows multiplied in fp32."""

    @torch.no_grad()
    def add(self, rows: Rows, half: Tensor) -> None:
        """Take in some rows: normalised activations {source: [n, W]} and each row's half int64 [n]."""
        self.rows += torch.bincount(half.cpu(), minlength=HALVES)
        for source, total in self.total.items():
            x = rows[source].float()
            for number in range(HALVES):
                mine = x[half == number]
                total[number] += mine.sum(dim=0, dtype=torch.float64)
                self.products[source][number] += _with_itself(mine).double()


class Moments:
    """First and second moments of feature activations f, with each other and with normalised activations x."""

    def __init__(
        self,
        widths: Mapping[str, int],
        features: int,
        *,
        device: torch.device | str = "cpu",
        of_rows: RowMoments | None = None,
    ) -> None:
        """Nothing summed yet, for sources of these widths and features 0 to `features` - 1.

        Where the same rows in the same halves have been summed before, `of_rows` is what was found of them.
        """
        self.widths, self.features = dict(widths), features
        self._rows_are_known = of_rows is not None
        self.of_rows = of_rows or RowMoments(widths, device=device)
        """What is the same for all features."""
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
        if not self._rows_are_known:
            self.of_rows.add(rows, half)
        # A feature counts as two, one for each half, so that one sparse sum fills both.
        cell = codes.feature + half[codes.row] * self.features
        cells = HALVES * self.features
        value = codes.value.double()

        def summed(weights: Tensor | None) -> Tensor:
            return torch.bincount(cell, weights=weights, minlength=cells).view(HALVES, -1)

        self.firings += summed(None)
        self.sums += summed(value)
        self.squares += summed(value.square())
        pattern = SparsePattern(codes.row.contiguous(), cell, rows=codes.rows, features=cells)
        for source in self.widths:
            found = sum_by_feature(pattern, codes.value, rows[source].float())
            self.cross[source] += found.view(HALVES, self.features, -1)


def _with_itself(x: Tensor) -> Tensor:
    """Products of the columns of x [n, W] with each other; half of them are multiplied, the others mirror them."""
    out = x.new_empty(x.shape[1], x.shape[1])
    for first in range(0, len(out), TILE):
        part = slice(first, first + TILE)
        out[part, first:] = x[:, part].T @ x[:, first:]
        out[first + TILE :, part] = out[part, first + TILE :].T
    return out


def _double(*shape: int, device: torch.device | str) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)
