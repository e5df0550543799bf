"""Shares from a calibration come with the wide intervals that few trials leave."""

import pytest
from scipy.stats import binomtest

from app.results.evidence.calibration import NullClaims, OwnerReliability, interval


@pytest.mark.parametrize(("count", "n"), [(0, 820), (1, 200), (14, 40), (31, 96), (40, 40)])
def test_interval_equals_scipys_wilson_interval(count: int, n: int):
    expected = binomtest(count, n).proportion_ci(0.95, method="wilson")

    assert interval(count, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_interval_without_trials_is_0_to_1():
    assert interval(0, 0) == (0.0, 1.0)


def test_a_null_without_supported_claims_has_a_positive_upper_bound():
    null = NullClaims("noise", rows=100_000, claims=820, judged=168, supported=0, excess_95=1.02)

    low, high = null.interval
    assert low == 0.0
    assert high == pytest.approx(1.96**2 / (820 + 1.96**2), rel=1e-4), "of none in n it is z² / (n + z²)"


@pytest.mark.parametrize(
    ("returned", "supported", "power", "weak"),
    [(0, 0, None, False), (3, 0, None, False), (4, 0, 0.0, True), (8, 6, 0.75, True), (10, 8, 0.8, False)],
)
def test_power_is_judged_once_four_planted_concepts_came_back(returned, supported, power, weak):
    one = OwnerReliability("smollm2", 425, 0, None, (), returned, supported)

    assert one.power == power
    assert one.weak == weak
    assert (one.caution is not None) == weak
    if weak:
        words = f"Claims for smollm2 can't be judged well: {supported} of {returned} planted concepts that came back"
        assert one.caution.startswith(words)
