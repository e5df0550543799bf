"""How much farther apart two models are on some text than elsewhere, beyond what a noised copy is.

The *divergence ratio* of a set of units of text (windows, or spans) is

    (divergence inside / reference inside) / (divergence outside / reference outside),

where divergence is that of the two models and reference that of the first and a noised copy of it: 1 for text that is
no more different than any change of the weights would make it. Axes: C candidates, U units, K groups of documents.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.stats import t

TAIL = 0.05
"""Beyond either end of an interval."""
CELLS = 1 << 22
"""Candidates times groups of documents in memory at a time."""
PRIOR = 1.0
"""Mean units added inside, so that text on which nothing moves gives no infinite ratio."""


class Units(NamedTuple):
    """Units of text on which predictions were compared."""

    apart: np.ndarray
    """Summed divergence of the two models, nats [U]."""
    reference: np.ndarray
    """Summed divergence of the base and its noised copy, nats [U]."""
    group: np.ndarray
    """Group of documents, int64 [U]: units of one group are not independent."""
    control: np.ndarray | None = None
    """Summed divergence of the base and another noised copy, nats [U]: a ratio must hold against either copy."""

    def select(self, kept: np.ndarray) -> "Units":
        """Of some units, bool [U]; groups keep their numbers."""
        return Units(*(None if values is None else values[kept] for values in self))  # type: ignore[arg-type]

    def nulls(self) -> tuple["Units", "Units"]:
        """Either noised copy in the place of the other model, against the other copy, where nothing is to be found."""
        assert self.control is not None, "there are two copies"
        return (
            Units(self.control, self.reference, self.group),
            Units(self.reference, self.control, self.group),
        )


class Ratios(NamedTuple):
    """Divergence ratios of candidates, with their 90 % intervals [C]; NaN for those in fewer than two groups."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    groups: np.ndarray
    """Groups of documents with a unit inside, int64 [C]."""


def divergence_ratios(members: sp.csr_matrix, units: Units, *, prior: float = PRIOR) -> Ratios:
    """Ratios of candidates; `members` says which units are inside each, bool [C, U].

    Intervals are of Student's t on the logarithm, with the variance between groups of documents (linearised: how much
    the ratio would change without each of them). With a `control`, those against the copy with the smaller lower bound.
    """
    if units.control is not None:
        one, other = (
            divergence_ratios(members, Units(units.apart, reference, units.group), prior=prior)
            for reference in (units.reference, units.control)
        )
        smaller = ~(other.low < one.low)
        return Ratios(*(np.where(smaller, *values) for values in zip(one, other, strict=True)))
    count = int(units.group.max(initial=-1)) + 1
    of_unit = np.arange(len(units.group))
    of_group = sp.csr_matrix((np.ones(len(of_unit)), (of_unit, units.group)), (len(of_unit), count))
    block = max(CELLS // max(count, 1), 1)
    parts = [
        _ratios(sp.csr_matrix(members[first : first + block], dtype=np.float64), units, of_group, prior)
        for first in range(0, max(members.shape[0], 1), block)
    ]
    return Ratios(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _ratios(weights: sp.csr_matrix, units: Units, of_group: sp.csr_matrix, prior: float) -> Ratios:
    """Ratios of some candidates; `of_group` says of which group each unit is [U, K]."""
    apart, reference = ((weights @ sp.diags(values) @ of_group).toarray() for values in (units.apart, units.reference))
    groups = ((weights @ of_group).toarray() > 0).sum(axis=1)
    total = [np.bincount(units.group, values, of_group.shape[1]) for values in (units.apart, units.reference)]
    with np.errstate(divide="ignore", invalid="ignore"):
        inside, spread_inside = _log_ratio(apart, reference, prior * _mean(units.apart), prior * _mean(units.reference))
        outside, spread_outside = _log_ratio(total[0] - apart, total[1] - reference)
        error = np.sqrt(groups / (groups - 1) * spread_inside + spread_outside)
        width = t.ppf(1 - TAIL, np.maximum(groups - 1, 1)) * error
        value = np.where(groups > 1, inside - outside, np.nan)
    return Ratios(np.exp(value), np.exp(value - width), np.exp(value + width), groups)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _log_ratio(
    above: np.ndarray, below: np.ndarray, more_above: float = 0.0, more_below: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of the ratio of sums over groups [C, K], and its variance, uncorrected for few groups [C]."""
    sums = above.sum(axis=1) + more_above, below.sum(axis=1) + more_below
    influence = above / sums[0][:, None] - below / sums[1][:, None]
    return np.log(sums[0] / sums[1]), (influence**2).sum(axis=1)


def half_ratios(members: sp.csr_matrix, units: Units) -> list[float]:
    """The ratio of one candidate [1, U] in either half of the groups of documents; NaN where it can't be measured."""
    inside = members.indices
    half = units.group % 2
    half[inside] = np.unique(units.group[inside], return_inverse=True)[1] % 2  # its own groups are halved evenly
    return [
        float(divergence_ratios(members[:, half == number], units.select(half == number)).value[0]) for number in (0, 1)
    ]
