"""Coactivation: how the activations of every pair of features correlate over all rows, exactly."""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from trainer.analysis.rows.codes import CodeSpool
from trainer.kernels import cpu

MEMORY = 128 << 20
"""Bytes for sums of products at a time. More features than fit take more passes over the spooled codes."""
SLICE = 512
"""Features in one sparse product."""


class Coactivation:
    """Correlations of activations, a feature counting as zero on rows where it does not fire."""

    def __init__(self, codes: CodeSpool) -> None:
        """Use the codes of a finished pass; one quick read of them gives the means and spreads."""
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
        # Below rounding a feature is constant: zero everywhere, or the same on every row.
        self.spread = np.sqrt(np.where(variance > 1e-9 * squares / rows, variance, 0))

    def correlations(self, block: int = 256) -> Iterator[tuple[int, np.ndarray]]:
        """First feature and correlations with all features [block, features], block by block.

        NaN where a feature is constant. Products are summed in fp32: right to about 1e-5.
        """
        step = max(block, MEMORY // (4 * max(self._codes.features, 1)))
        for first in range(0, self._codes.features, step):
            products = self._products(first, min(first + step, self._codes.features))
            for inside in range(0, len(products), block):
                part = products[inside : inside + block]
                yield first + inside, self._correlation(first + inside, part)

    def _products(self, first: int, stop: int) -> np.ndarray:
        """Sums over rows of products of activations, fp32 [stop - first, features]."""
        total = np.zeros((stop - first, self._codes.features), np.float32)
        add = cpu.add_products if cpu.AVAILABLE else _add_products
        for matrix in self._codes.matrices():
            add(matrix.T[first:stop].tocsr(), matrix.tocsr(), total)
        return total

    def _correlation(self, first: int, products: np.ndarray) -> np.ndarray:
        mine = slice(first, first + len(products))
        with np.errstate(divide="ignore"):
            over = np.where(self.spread > 0, 1 / self.spread, np.nan).astype(np.float32)
        mean = self.mean.astype(np.float32)
        covariance = products / np.float32(max(self._codes.rows, 1)) - mean[mine, None] * mean
        return covariance * over[mine, None] * over


def _add_products(left: sp.csr_array, right: sp.csr_array, out: np.ndarray) -> None:
    """`cpu.add_products` without the compiler, some features at a time to stay small."""
    for first in range(0, len(out), SLICE):
        product = left[first : first + SLICE] @ right
        row = np.repeat(np.arange(first, first + product.shape[0]), np.diff(product.indptr))
        out[row, product.indices] += product.data
