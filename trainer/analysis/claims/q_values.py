"""q-values: how many false claims to expect among claims at least as strong as each, learned from known false ones.

The known false ones are *decoys*. A claim's p-value is its rank among them, and the q-value is that of Benjamini and
Hochberg (1995) on those p-values. Where decoys look as exclusive as false claims do, the expected share of false claims
among those below a q-value is at most that q-value, however many claims are true (Bates et al. 2023, arXiv 2104.08279).
"""

from collections.abc import Iterable

import numpy as np


def p_values(strength: np.ndarray, decoys: np.ndarray) -> np.ndarray:
    """Share of the decoys that look at least as strong as each claim [n], the claim itself counted among them.

    Larger strengths are stronger evidence. NaN for a claim whose strength is NaN, and for all without decoys.
    """
    ordered = np.sort(decoys[~np.isnan(decoys)])
    if not len(ordered):
        return np.full(len(strength), np.nan)
    as_strong = len(ordered) - np.searchsorted(ordered, strength, side="left")
    return np.where(np.isnan(strength), np.nan, (1 + as_strong) / (1 + len(ordered)))


def q_values(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's q-values of p-values [n]; claims without a p-value (NaN) are not counted."""
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    raw = p[order] * len(order) / np.arange(1, len(order) + 1)
    q = np.full(len(p), np.nan)
    # A weaker claim cannot be surer than a stronger one.
    q[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return q


def most_doubtful(values: Iterable[np.ndarray], claims: int) -> np.ndarray:
    """Largest value of each claim over several sets of decoys [claims]; NaN where none has one."""
    largest = np.full(claims, np.nan)
    for one in values:
        largest = np.fmax(largest, one)
    return largest
