"""Asks of every feature whether two models differ more where it fires than elsewhere.

A fine-tune mostly changes what a model makes of features that it shares with its base, so that this is asked of shared
features, too. Axes: F features, N spans, P rows in reading order.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from trainer.analysis.behaviour.divergence_ratio import Ratios, Units, divergence_ratios
from trainer.analysis.behaviour.span_table import SpanTable
from trainer.analysis.behaviour.windows import MIN_GROUPS, WINDOW
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.rows.row_order import RowOrder

BITS = 32
"""Low bits of a key, which hold the byte; the high bits hold the sequence."""


@dataclass(frozen=True)
class FeatureDivergence:
    """Divergence ratios of all features for one pair of models [F]; NaN for those in fewer than MIN_GROUPS groups."""

    base: int
    source: int
    ratios: Ratios
    control: np.ndarray
    """Lower bounds of the same ratios for the base and a noised copy, held against another; the larger of two [F]."""
    spans: dict[int, np.ndarray]
    """Spans that come where a feature fires, int64, of features with a ratio surely above 1."""

    def surely_above(self, limit: float) -> list[int]:
        """Features whose ratio has a lower bound of `limit` or more, at least 1, the largest bound first."""
        low = self.ratios.low
        return [one for one in sorted(self.spans, key=lambda one: -np.nan_to_num(low[one])) if low[one] >= limit]

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the table `feature_divergence`."""
        feature = np.flatnonzero(~np.isnan(self.ratios.value))
        return {
            "feature": feature,
            "base": np.full(len(feature), self.base),
            "source": np.full(len(feature), self.source),
            "ratio": self.ratios.value[feature],
            "low": self.ratios.low[feature],
            "high": self.ratios.high[feature],
            "documents": self.ratios.groups[feature],
        }


def feature_divergence(
    spans: SpanTable, codes: CodeSpool, row_order: RowOrder, group_of: np.ndarray
) -> FeatureDivergence:
    """Ratios of all features of a run for one pair; `group_of` is the group of documents of each sequence.

    None is measured where the models predict the same.
    """
    span_of_row = _span_of_row(spans, row_order)
    group = np.unique(group_of[spans.sequence], return_inverse=True)[1]
    units = Units(spans.apart, spans.reference, group, spans.control)
    parts, controls, spans_of = [], [], {}
    for found in codes.feature_ranges():
        span = span_of_row[found.row]
        kept = span >= 0
        members = sp.csr_matrix(
            (np.ones(int(kept.sum()), bool), (found.feature[kept], span[kept])), (found.features, len(spans.apart))
        )
        parts.append(divergence_ratios(members, units, prior=WINDOW))
        for at in np.flatnonzero(parts[-1].low >= 1 if not spans.alike else []).tolist():
            spans_of[found.first + at] = np.unique(members[[at]].indices).astype(np.int64)
        controls.append(np.fmax(*(divergence_ratios(members, null, prior=WINDOW).low for null in units.nulls())))
    value, low, high, count = (np.concatenate(column) for column in zip(*parts, strict=True))
    enough = (count >= MIN_GROUPS) & (not spans.alike)
    value, low, high, control = (np.where(enough, one, np.nan) for one in (value, low, high, np.concatenate(controls)))
    return FeatureDivergence(spans.base, spans.source, Ratios(value, low, high, count), control, spans_of)


def _span_of_row(spans: SpanTable, row_order: RowOrder) -> np.ndarray:
    """The span that is predicted at each row of the store, int64; -1 for rows at whose end none begins."""
    keys = (spans.sequence.astype(np.int64) << BITS) + spans.byte_start
    wanted = (row_order.sequence.astype(np.int64) << BITS) + row_order.byte_end
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    span = np.where(keys[at] == wanted, at, -1) if len(keys) else np.full(len(wanted), -1)
    found: np.ndarray = span if row_order.position_of_row is None else span[row_order.position_of_row]
    return found
