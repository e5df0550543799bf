"""Figures show the counts, and leave colours to the page's theme."""

import math

from app.web.plots import curves, stacked_histogram

BINS = [(0.0, 0.1, "a", 4), (0.1, 0.2, "a", 1), (0.1, 0.2, "other", 9)]
LOOKS = {"a": "o0", "other": "other", "absent": "o1"}


def test_each_owner_has_its_bars_and_their_addresses():
    figure = stacked_histogram(BINS, LOOKS, x_title="share", logarithmic=False, links={("a", 0.1): "/here"})

    first, second = figure["data"]
    assert (first["name"], first["y"], first["meta"]) == ("a", [4, 1], {"colour": "--o0"})
    assert [entry[0] for entry in first["customdata"]] == ["", "/here"]
    assert second["meta"] == {"colour": "--other-fill"}
    assert figure["layout"]["barmode"] == "stack"


def test_on_a_logarithmic_axis_a_single_feature_can_be_seen_and_nothing_is_stacked():
    figure = stacked_histogram(BINS, LOOKS, x_title="share", logarithmic=True, links={})

    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 0 < math.log10(9) < high
    assert figure["layout"]["barmode"] == "overlay"


def test_nothing_to_count_is_an_empty_figure():
    assert stacked_histogram([], LOOKS, x_title="share", logarithmic=True, links={})["data"] == []


def test_a_curve_about_a_source_has_its_name_and_colour():
    lines = [("loss", [0, 1], [2.0, 1.0]), ("loss.a", [0, 1], [1.0, 0.5])]

    whole, part = curves(lines, LOOKS, y_title="loss")["data"]

    assert (whole["name"], whole["meta"]["colour"]) == ("loss", "--muted")
    assert (part["name"], part["meta"]["colour"], part["y"]) == ("a", "--o0", [1.0, 0.5])
