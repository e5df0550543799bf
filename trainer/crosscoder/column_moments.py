"""Mean and standard deviation of sparse columns, zeros included."""

import numpy as np
import scipy.sparse as sp


def column_moments(columns: sp.csc_array | sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of every column of [rows, columns], each fp64 [columns]."""
    mean = np.asarray(columns.mean(axis=0)).ravel()
    square = np.asarray(columns.multiply(columns).mean(axis=0)).ravel()
    return mean, np.sqrt(np.maximum(square - mean**2, 0))
