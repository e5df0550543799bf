"""Computes the exact correlation of every pair of features' activations over all rows."""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from trainer.analysis.rows.codes import CodeSpool
from trainer.kernels import cpu

MEMORY = 128 << 20
"""Bytes for sums of products at a time; if all features do not fit, the spooled codes are read several times."""
SLICE = 512
"""Features per sparse product."""


class Coactivation:
    """Correlations of activations, which are zero on rows where a feature does not fire."""

    def __init__(self, codes: CodeSpool) -> None:
        """Compute means and standard deviations in one read of the codes of a finished pass."""
        self._codes = codes
        total, squares = np.zeros(codes.features), np.zeros(codes.features)
        for matrix in codes.matrices():
            feature = np.repeat(np.arange(codes.features), np.diff(matrix.indptr))
            value = matrix.data.astype(np.float64)
            total += np.bincount(feature, weights=value, minlength=codes.features)
            squares += np.bincount(feature, weights=value**2, minlength=codes.features)
        rows = max(codes.rows, 1)
        self.mean = total / rows
        variance = squares / rows - self.mean**2
        # A variance within rounding error means a constant feature: zero everywhere, or the same on every row.
        self.deviation = np.sqrt(np.where(variance > 1e-9 * squares / rows, variance, 0))

    def correlations(self, block: int = 256) -> Iterator[tuple[int, np.ndarray]]:
        """First feature and correlations with all features [block, features], block by block.

        NaN where a feature is constant. Products are summed in fp32, accurate to about 1e-5.
        """
        step = max(block, MEMORY // (4 * max(self._codes.features, 1)))
        for first in range(0, self._codes.features, step):
            products = self._products(first, min(first + step, self._codes.features))
            for offset in range(0, len(products), block):
                part = products[offset : offset + block]
                yield first + offset, self._correlation(first + offset, part)

    def _products(self, first: int, stop: int) -> np.ndarray:
        """Sums over rows of products of activations, fp32 [stop - first, features]."""
        total = np.zeros((stop - first, self._codes.features), np.float32)
        add = cpu.add_sparse_product if cpu.available() else _add_products
        for matrix in self._codes.matrices():
            add(matrix.T[first:stop].tocsr(), matrix.tocsr(), total)
        return total

    def _correlation(self, first: int, products: np.ndarray) -> np.ndarray:
        some = slice(first, first + len(products))
        with np.errstate(divide="ignore"):
            inverse = np.where(self.deviation > 0, 1 / self.deviation, np.nan).astype(np.float32)
        mean = self.mean.astype(np.float32)
        covariance = products / np.float32(max(self._codes.rows, 1)) - mean[some, None] * mean
        return covariance * inverse[some, None] * inverse


def _add_products(left: sp.csr_array, right: sp.csr_array, out: np.ndarray) -> None:
    """`cpu.add_sparse_product` in SciPy, for machines without a compiler; in slices, to bound memory."""
    for first in range(0, len(out), SLICE):
        product = left[first : first + SLICE] @ right
        row = np.repeat(np.arange(first, first + product.shape[0]), np.diff(product.indptr))
        out[row, product.indices] += product.data
