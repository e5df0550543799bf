"""Builds codes from a dense matrix [rows, features], so that expected values can be computed densely."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainer.analysis.rows.codes import CodeSpool, FeatureCodes
from trainer.crosscoder.crosscoder import Codes


def codes_of(dense: np.ndarray) -> Codes:
    """The non-zero entries, by row."""
    row, feature = np.nonzero(dense)
    value = torch.from_numpy(dense[row, feature].astype(np.float32))
    return Codes(torch.from_numpy(row), torch.from_numpy(feature), value, len(dense))


def spool_of(dense: np.ndarray, folder: Path, *, block: int = 7) -> CodeSpool:
    """A spool filled block by block."""
    spool = CodeSpool(folder, dense.shape[1])
    for first in range(0, len(dense), block):
        spool.append(codes_of(dense[first : first + block]))
    spool.flush()
    return spool


def feature_codes(dense: np.ndarray, *, first: int = 0) -> FeatureCodes:
    """The same as a range of features that begins with `first`."""
    feature, row = np.nonzero(dense.T)
    start = np.concatenate([[0], np.cumsum((dense != 0).sum(axis=0))])
    return FeatureCodes(first, start, row, dense.T[feature, row].astype(np.float32))


def matrices(rows: int = 40, features: int = 6) -> st.SearchStrategy[np.ndarray]:
    """Dense codes, mostly zero, with many equal values."""
    shape = st.tuples(st.integers(1, rows), st.integers(1, features))
    values = st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 8.0])
    return shape.flatmap(lambda size: hnp.arrays(np.float32, size, elements=values))
