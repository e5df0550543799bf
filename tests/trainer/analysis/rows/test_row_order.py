"""Rows are put into reading order whatever order a store has them in."""

import numpy as np
import torch

from trainer.analysis.rows.row_order import RowOrderCollector
from trainer.store.store import Block


def block(*places: tuple[int, int]) -> Block:
    sequence, byte_end = torch.tensor(places, dtype=torch.int32).T
    return Block({}, sequence, sequence, byte_end)


def test_a_store_in_reading_order_is_taken_as_it_is():
    collector = RowOrderCollector()
    collector.add(block((0, 3), (0, 5)))
    collector.add(block((2, 1)))
    places = collector.finish()

    assert places is not None
    assert places.of_row is None
    assert places.sequence.tolist() == [0, 0, 2]
    assert places.byte_end.tolist() == [3, 5, 1]
    assert places.first.tolist() == [0, 0, 2]
    assert places.stop.tolist() == [2, 2, 3]


def test_rows_in_another_order_get_the_place_they_have_in_the_text():
    collector = RowOrderCollector()
    collector.add(block((2, 1), (0, 5)))
    collector.add(block((0, 3)))
    places = collector.finish()

    assert places is not None
    assert places.sequence.tolist() == [0, 0, 2]
    assert places.byte_end.tolist() == [3, 5, 1]
    assert places.of_row.tolist() == [2, 1, 0]


def test_the_opening_is_the_first_eight_rows_of_every_sequence():
    collector = RowOrderCollector()
    collector.add(block(*((0, end) for end in range(10)), *((1, end) for end in range(3))))
    places = collector.finish()

    assert places is not None
    assert np.flatnonzero(~places.opening).tolist() == [8, 9]


def test_a_store_without_places_has_none():
    collector = RowOrderCollector()
    collector.add(Block({"a": torch.zeros(2, 1)}, None, None, None))

    assert collector.finish() is None
