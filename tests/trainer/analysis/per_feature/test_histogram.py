"""Forty bins from zero to the largest activation; empty ones are left out."""

import numpy as np
from hypothesis import given, settings

from tests.worlds.dense_codes import feature_codes, matrices
from trainer.analysis.per_feature.histogram import BINS, histogram


def test_bins_by_hand():
    dense = np.array([[5.0, 0.0], [5.0, 0.0], [0.125, 0.0], [2.5, 0.0], [2.51, 7.0]], np.float32)
    bins = histogram(feature_codes(dense, first=5))

    # Feature 5 has bins of an eighth: 0.125 is the upper edge of the first, 2.5 of the twentieth.
    assert bins["feature"].tolist() == [5, 5, 5, 5, 6]
    assert np.allclose(bins["low"], [0.0, 2.375, 2.5, 4.875, 6.825])
    assert np.allclose(bins["high"], [0.125, 2.5, 2.625, 5.0, 7.0])
    assert bins["count"].tolist() == [1, 1, 1, 2, 1]


@settings(max_examples=40, deadline=None)
@given(dense=matrices())
def test_bins_hold_every_firing_once_and_none_is_empty(dense):
    bins = histogram(feature_codes(dense))

    assert (bins["count"] > 0).all()
    for feature in range(dense.shape[1]):
        selected = bins["feature"] == feature
        column = dense[:, feature]
        assert bins["count"][selected].sum() == (column > 0).sum()
        for low, high, count in zip(
            bins["low"][selected], bins["high"][selected], bins["count"][selected], strict=True
        ):
            slack = 1e-6 * column.max()
            assert ((column > low + slack) & (column < high - slack)).sum() <= count
            assert count <= ((column > low - slack) & (column <= high + slack)).sum()
        assert selected.sum() <= BINS
