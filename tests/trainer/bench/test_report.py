"""A report is printed as a text table and as one line of JSON."""

import json

import pytest

from trainer.bench.machine import Machine
from trainer.bench.repeats import Repeats
from trainer.bench.report import Report, formatted, rounded, table


def test_the_first_column_is_aligned_left_and_the_others_right():
    assert table(("what", "ms"), [("list", "7"), ("page", "12.5")]).splitlines() == [
        "what    ms",
        "----  ----",
        "list     7",
        "page  12.5",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.03456, "0.0346"),
        (12.345, "12.3"),
        (99.94, "99.9"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (Repeats(0.5, 0.25, 2000.0), "0.5 (0.25–2,000)"),
    ],
)
def test_a_figure_has_three_digits_or_whole_thousands(value: Repeats | float | None, expected: str):
    assert formatted(value) == expected


def test_nested_floats_are_rounded_to_four_digits_and_nothing_else_changes():
    value = {"a": 0.123456, "b": [123456.7, {"c": None}], "d": 123456, "e": "0.123456", "f": True}

    assert rounded(value) == {"a": 0.1235, "b": [123500.0, {"c": None}], "d": 123456, "e": "0.123456", "f": True}


def test_the_figures_are_one_line_of_json():
    report = Report("Title", ("", "x"), (("a", "1"),), {"name": "two\nlines", "x": 1 / 3}, ("a note",))

    assert report.text().splitlines() == ["Title", "", "   x", "-  -", "a  1", "", "a note"]
    assert "\n" not in report.json()
    assert json.loads(report.json()) == {"name": "two\nlines", "x": 0.3333}


def test_nan_is_refused_in_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        Report("", (), (), {"x": float("nan")}).json()


def test_the_machine_note_has_the_share_of_other_programs():
    machine = Machine()

    assert 0 <= machine.others_share() <= 1
    assert "cores (" in machine.note()
