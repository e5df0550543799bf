"""Repeated measurements are summarised, and interleaved ones become ratios."""

from itertools import count

import pytest

from trainer.bench.repeats import Repeats, percentile, ratios, time_interleaved


def test_median_and_range_of_several_measurements():
    assert Repeats.from_values([5.0, 1.0, 4.0]) == Repeats(4.0, 1.0, 5.0)
    assert Repeats.from_values([1.0, 2.0, 4.0, 9.0]) == Repeats(3.0, 1.0, 9.0)


def test_actions_are_interleaved_and_timed_separately():
    done: list[str] = []
    ticks = count()
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 23.0, 30.0, 34.0])

    seconds = time_interleaved(
        {"one": lambda: done.append(f"one{next(ticks)}"), "other": lambda: done.append(f"other{next(ticks)}")},
        2,
        clock=lambda: next(clock),
    )

    assert done == ["one0", "other1", "one2", "other3"]
    assert seconds == {"one": [1.0, 3.0], "other": [2.0, 4.0]}


def test_with_warm_caches_the_second_of_two_calls_counts():
    done: list[str] = []
    clock = iter([10.0, 12.0, 20.0, 23.0])

    seconds = time_interleaved(
        {"one": lambda: done.append("one"), "other": lambda: done.append("other")}, 1, lambda: next(clock), warm=True
    )

    assert done == ["one", "one", "other", "other"]
    assert seconds == {"one": [2.0], "other": [3.0]}


def test_ratios_are_computed_round_by_round():
    assert ratios([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 10.0), (0.25, 10.0), (0.26, 20.0), (0.5, 20.0), (0.75, 30.0), (0.99, 40.0), (1.0, 40.0)],
)
def test_a_percentile_is_the_smallest_value_that_enough_values_do_not_exceed(share: float, expected: float):
    assert percentile([30.0, 10.0, 40.0, 20.0], share) == expected
