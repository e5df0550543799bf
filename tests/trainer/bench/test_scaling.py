"""The scaling bench varies one size at a time around one setup."""

import pytest

from trainer.bench.repeats import Repeats
from trainer.bench.scaling import BASE, bench_scaling, costs, slope, varied
from trainer.bench.train import TrainSetup, TrainSpeed

TINY = TrainSetup("standard", (8, 8), 32, 2, 16)


def speed(setup: TrainSetup, step: float, product: float | None) -> TrainSpeed:
    middle = Repeats(1.0, 1.0, 1.0)
    done = None if product is None else Repeats(product, product, product)
    return TrainSpeed(setup, middle, middle, Repeats(step, step, step), done, {}, 0.1)


def test_every_setup_is_measured_once_and_has_a_row_in_the_table():
    variations = {"features": (16, 32), "k": (2, 4), "batch": (16,)}
    report = bench_scaling(base=TINY, variations=variations, rounds=1)

    assert [(one["varied"], one["size"]) for one in report.figures["results"]] == [
        ("features", 16),
        ("features", 32),
        ("k", 2),
        ("k", 4),
        ("batch", 16),
    ]
    same = [one["rows_per_s"] for one in report.figures["results"] if (one["varied"], one["size"]) != ("features", 16)]
    assert same[0] == same[1] == same[3], "the base itself is measured once"
    assert [row[:2] for row in report.rows] == [
        ("features", "16"),
        ("features", "32"),
        ("k", "2"),
        ("k", "4"),
        ("batch", "16"),
    ]
    assert "whole step" in report.text()


def test_one_size_changes_at_a_time():
    assert varied(BASE, "width", 144) == TrainSetup("standard", (144, 144), 4096, 32, 1024)
    assert varied(BASE, "k", 8) == TrainSetup("standard", (576, 576), 4096, 8, 1024)
    assert varied(BASE, "batch", 256).batch == 256


def test_costs_are_microseconds_per_row():
    found = costs(speed(TINY, step=8.0, product=2.0))

    assert found == {"whole step": 500.0, "encoder product": 125.0, "rest": 375.0}
    assert costs(speed(TINY, step=8.0, product=None)) == {"whole step": 500.0}


def test_a_proportional_cost_has_slope_one():
    assert slope({1: 3.0, 2: 6.0, 4: 12.0}) == pytest.approx(1)
    assert slope({1: 5.0, 2: 5.0, 4: 5.0}) == pytest.approx(0)
