"""The bench of scaling varies one size at a time around one setup, and draws what it measured."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from trainer.bench.chart import Panel
from trainer.bench.repeats import Repeats
from trainer.bench.scaling import BASE, bench_scaling, costs, drawn, slope, varied
from trainer.bench.train import Setup, Speed

TINY = Setup("standard", (8, 8), 32, 2, 16)


def speed(setup: Setup, step: float, product: float | None) -> Speed:
    middle = Repeats(1.0, 1.0, 1.0)
    done = None if product is None else Repeats(product, product, product)
    return Speed(setup, middle, middle, Repeats(step, step, step), done, {}, 0.1)


def test_every_setup_is_measured_once_and_stands_in_the_table_and_the_plot(tmp_path: Path):
    around = {"features": (16, 32), "k": (2, 4), "batch": (16,)}
    report = bench_scaling(base=TINY, around=around, rounds=1, plot=tmp_path / "scaling.svg")

    assert [(one["varied"], one["size"]) for one in report.figures["results"]] == [
        ("features", 16),
        ("features", 32),
        ("k", 2),
        ("k", 4),
        ("batch", 16),
    ]
    same = [one["rows_per_s"] for one in report.figures["results"] if (one["varied"], one["size"]) != ("features", 16)]
    assert same[0] == same[1] == same[3], "the base itself is measured once"
    words = "".join(ElementTree.parse(tmp_path / "scaling.svg").getroot().itertext())
    assert "whole step" in words and "batch" in words


def test_one_size_changes_at_a_time():
    assert varied(BASE, "width", 144) == Setup("standard", (144, 144), 4096, 32, 1024)
    assert varied(BASE, "k", 8) == Setup("standard", (576, 576), 4096, 8, 1024)
    assert varied(BASE, "batch", 256).batch == 256


def test_costs_are_microseconds_per_row():
    found = costs(speed(TINY, step=8.0, product=2.0))

    assert found == {"whole step": 500.0, "encoder product": 125.0, "rest": 375.0}
    assert costs(speed(TINY, step=8.0, product=None)) == {"whole step": 500.0}


def test_a_cost_in_proportion_has_slope_one():
    assert slope({1: 3.0, 2: 6.0, 4: 12.0}) == pytest.approx(1)
    assert slope({1: 5.0, 2: 5.0, 4: 5.0}) == pytest.approx(0)


def test_equal_factors_stand_at_equal_distances_on_a_logarithmic_axis():
    panel = Panel("cost", {}, top=256.0, bottom=1.0)

    assert [panel.height(value) for value in (1, 4, 16, 64, 256)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert panel.tick(0.5) == pytest.approx(16)
    assert panel.height(0.1) == 0
    assert Panel("share", {}, top=2.0).height(1.0) == 0.5


def test_panels_have_sizes_of_their_own():
    speeds = {"features": {16: speed(TINY, 1, 0.5), 32: speed(TINY, 2, 1)}, "k": {2: speed(TINY, 1, 0.5)}}
    words = list(ElementTree.fromstring(drawn(speeds)).itertext())

    assert words.count("16") >= 1 and words.count("2") == 1
