"""Formats of numbers, times and addresses."""

import datetime

import pytest

from app.web.numbers import ago, compact, duration, number, percent, signed
from app.web.templates import address, as_json

NOON = datetime.datetime(2026, 1, 2, 12, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (12345, "12,345"),
        (1234.5, "1,234"),
        (12.345, "12.3"),
        (0.98765, "0.988"),
        (0.00123456, "0.00123"),
        (0.0000123, "1.23e-05"),
        (-3.14159, "-3.14"),
    ],
)
def test_a_number_has_three_significant_digits(value: float | None, shown: str):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.0, "0.0 %"), (0.7812, "78.1 %"), (0.0005, "0.050 %"), (1.0, "100.0 %")]
)
def test_a_share_is_a_percentage_and_a_tiny_one_is_not_zero(value: float | None, shown: str):
    assert percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (950, "950"), (9_999, "9,999"), (12_345, "12.3k"), (4_560_000, "4.56M"), (2.5e9, "2.5G")],
)
def test_a_large_count_is_short(value: float | None, shown: str):
    assert compact(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7_800, "2 h 10 min")],
)
def test_a_duration_has_two_units_at_most(seconds: float | None, shown: str):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("before", "shown"),
    [
        (datetime.timedelta(seconds=20), "just now"),
        (datetime.timedelta(minutes=1), "1 minute ago"),
        (datetime.timedelta(hours=3), "3 hours ago"),
        (datetime.timedelta(days=2), "2 days ago"),
        (datetime.timedelta(seconds=-5), "just now"),
    ],
)
def test_time_since_is_in_words(before: datetime.timedelta, shown: str):
    assert ago(NOON - before, NOON) == shown
    assert ago((NOON - before).replace(tzinfo=None), NOON) == shown, "times in results have no zone and mean UTC"


def test_a_sign_is_always_there_and_minus_is_a_minus():
    assert (signed(1.5), signed(-1.5), signed(None)) == ("+1.50", "−1.50", "–")


def test_an_address_leaves_empty_values_out_and_escapes_the_rest():
    assert address("/x", "/runs", [("q", "a b&c"), ("owner", "a"), ("owner", "b"), ("none", "")]) == (
        "/x/runs?q=a%20b%26c&owner=a&owner=b"
    )
    assert address("", "/runs", {"page": None}) == "/runs"


def test_dataclasses_become_plain_data():
    from app.results.runs.overview import HistogramBin

    assert as_json({"bins": [HistogramBin(0.0, 0.5, "a", 3)]}) == {
        "bins": [{"low": 0.0, "high": 0.5, "owner": "a", "count": 3}]
    }
