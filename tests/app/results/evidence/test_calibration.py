"""Shares from a calibration come with the wide intervals that few trials leave."""

import pytest
from scipy.stats import binomtest

from app.results.evidence.calibration import Null, interval


@pytest.mark.parametrize(("count", "n"), [(0, 820), (1, 200), (14, 40), (31, 96), (40, 40)])
def test_interval_equals_scipys_wilson_interval(count: int, n: int):
    expected = binomtest(count, n).proportion_ci(0.95, method="wilson")

    assert interval(count, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_interval_without_trials_is_0_to_1():
    assert interval(0, 0) == (0.0, 1.0)


def test_a_null_run_without_supported_claims_has_a_positive_upper_bound():
    null = Null(claims=820, supported=0.0)

    low, high = null.interval
    assert (null.count, low) == (0, 0.0)
    assert high == pytest.approx(1.96**2 / (820 + 1.96**2), rel=1e-4), "of none in n it is z² / (n + z²)"
