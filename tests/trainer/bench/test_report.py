"""A report is a table that people can read and one line that programs can."""

import json

import pytest

from trainer.bench.machine import Machine
from trainer.bench.repeats import Repeats
from trainer.bench.report import Report, rounded, shown, table


def test_columns_are_aligned_names_to_the_left_and_figures_to_the_right():
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
    assert shown(value) == expected


def test_fractions_are_cut_to_four_digits_wherever_they_stand_and_nothing_else_changes():
    value = {"a": 0.123456, "b": [123456.7, {"c": None}], "d": 123456, "e": "0.123456", "f": True}

    assert rounded(value) == {"a": 0.1235, "b": [123500.0, {"c": None}], "d": 123456, "e": "0.123456", "f": True}


def test_the_figures_are_one_line_of_json_whatever_is_in_them():
    report = Report("Title", ("", "x"), (("a", "1"),), {"name": "two\nlines", "x": 1 / 3}, ("a note",))

    assert report.text().splitlines() == ["Title", "", "   x", "-  -", "a  1", "", "a note"]
    assert "\n" not in report.json()
    assert json.loads(report.json()) == {"name": "two\nlines", "x": 0.3333}


def test_a_number_that_is_none_is_not_passed_off_as_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        Report("", (), (), {"x": float("nan")}).json()


def test_a_machine_says_how_busy_others_kept_it():
    machine = Machine()

    assert 0 <= machine.others() <= 1
    assert "cores (" in machine.note()
