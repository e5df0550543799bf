"""Computes conformal p-values of claims against decoys and their Benjamini-Hochberg q-values.

Decoys are claims known to be false. A claim's p-value is its rank among them, the q-value that of Benjamini and
Hochberg (1995) on those p-values. If decoys are distributed like false claims, the expected share of false claims among
those below a q-value is at most that q-value, however many claims are true (Bates et al. 2023, arXiv 2104.08279).
"""

from collections.abc import Iterable

import numpy as np


def p_values(strength: np.ndarray, decoys: np.ndarray) -> np.ndarray:
    """(1 + decoys at least as strong) / (1 + decoys), for each claim [n].

    Larger strengths are stronger evidence. NaN for a claim whose strength is NaN, and for all claims without decoys.
    """
    ordered = np.sort(decoys[~np.isnan(decoys)])
    if not len(ordered):
        return np.full(len(strength), np.nan)
    as_strong = len(ordered) - np.searchsorted(ordered, strength, side="left")
    return np.where(np.isnan(strength), np.nan, (1 + as_strong) / (1 + len(ordered)))


def q_values(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's q-values of p-values [n]; NaN, and not counted as tests, where p is NaN."""
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    raw = p[order] * len(order) / np.arange(1, len(order) + 1)
    q = np.full(len(p), np.nan)
    # q-values are monotone in p.
    q[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return q


def largest_p_values(p_by_set: Iterable[np.ndarray], claims: int) -> np.ndarray:
    """Largest p-value of each claim over several sets of decoys [claims]; NaN if it has none in any set."""
    largest = np.full(claims, np.nan)
    for p in p_by_set:
        largest = np.fmax(largest, p)
    return largest
