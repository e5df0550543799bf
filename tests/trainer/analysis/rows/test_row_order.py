"""Rows are put into reading order, whatever order a store has them in."""

import numpy as np
import torch

from trainer.analysis.rows.row_order import RowOrderCollector
from trainer.store.store import RowBlock


def block(*rows: tuple[int, int]) -> RowBlock:
    sequence, byte_end = torch.tensor(rows, dtype=torch.int32).T
    return RowBlock({}, sequence, sequence, byte_end)


def test_a_store_in_reading_order_is_taken_as_it_is():
    collector = RowOrderCollector()
    collector.add(block((0, 3), (0, 5)))
    collector.add(block((2, 1)))
    row_order = collector.finish()

    assert row_order is not None
    assert row_order.position_of_row is None
    assert row_order.sequence.tolist() == [0, 0, 2]
    assert row_order.byte_end.tolist() == [3, 5, 1]
    assert row_order.first.tolist() == [0, 0, 2]
    assert row_order.stop.tolist() == [2, 2, 3]


def test_rows_in_another_order_get_their_position_in_the_text():
    collector = RowOrderCollector()
    collector.add(block((2, 1), (0, 5)))
    collector.add(block((0, 3)))
    row_order = collector.finish()

    assert row_order is not None
    assert row_order.sequence.tolist() == [0, 0, 2]
    assert row_order.byte_end.tolist() == [3, 5, 1]
    assert row_order.position_of_row.tolist() == [2, 1, 0]


def test_the_opening_is_the_first_eight_rows_of_every_sequence():
    collector = RowOrderCollector()
    collector.add(block(*((0, end) for end in range(10)), *((1, end) for end in range(3))))
    row_order = collector.finish()

    assert row_order is not None
    assert np.flatnonzero(~row_order.opening).tolist() == [8, 9]


def test_a_store_without_sequences_has_no_row_order():
    collector = RowOrderCollector()
    collector.add(RowBlock({"a": torch.zeros(2, 1)}, None, None, None))

    assert collector.finish() is None
