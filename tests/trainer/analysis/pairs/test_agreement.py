"""Joint histograms of twins against counting row by row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worlds.dense_codes import matrices, spool_of
from trainer.analysis.pairs import agreement as module
from trainer.analysis.pairs.agreement import agreement, agreement_columns


def bin_of(value: float, largest: float) -> int:
    """0 without a firing, else the fifth, counted by hand."""
    return next((level for level in range(6) if value <= level * largest / 5 + 1e-9), 5)


def slow(dense: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    tables = np.zeros((len(pairs), 6, 6), np.int64)
    largest = dense.max(axis=0)
    for number, (one, two) in enumerate(pairs):
        for row in dense:
            tables[number, bin_of(row[one], largest[one]), bin_of(row[two], largest[two])] += 1
    return tables


@settings(max_examples=40)
@given(matrices(), st.data())
def test_every_row_is_counted_in_the_cell_of_both_bins(tmp_path_factory, dense: np.ndarray, data: st.DataObject):
    one = st.integers(0, dense.shape[1] - 1)
    pairs = np.array(data.draw(st.lists(st.tuples(one, one), min_size=1, max_size=5)))

    with spool_of(dense, tmp_path_factory.mktemp("spool")) as spool:
        found = agreement(spool, pairs, dense.max(axis=0))

    assert (found == slow(dense, pairs)).all()


def test_pairs_read_in_several_batches_of_several_chunks_give_the_same(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", 20)
    monkeypatch.setattr("trainer.analysis.rows.codes.CHUNK", 30)
    dense = np.where(np.random.default_rng(0).random((60, 8)) < 0.3, 1.0, 0.0).astype(np.float32)
    dense *= np.random.default_rng(1).integers(1, 6, dense.shape)
    pairs = np.array([(0, 1), (2, 3), (4, 0), (7, 7), (1, 0)])

    with spool_of(dense, tmp_path) as spool:
        assert len(list(spool.matrices())) > 2
        found = agreement(spool, pairs, dense.max(axis=0))

    assert (found == slow(dense, pairs)).all()


def test_columns_leave_out_empty_cells(tmp_path):
    dense = np.array([[5, 0], [1, 1], [0, 0], [0, 2]], np.float32)
    pairs = np.array([[1, 0]])

    with spool_of(dense, tmp_path) as spool:
        found = agreement_columns(pairs, agreement(spool, pairs, dense.max(axis=0)))

    rows = list(zip(*(found[name].tolist() for name in ("feature", "other", "bin", "other_bin", "rows")), strict=True))
    assert rows == [(1, 0, 0, 0, 1), (1, 0, 0, 5, 1), (1, 0, 3, 1, 1), (1, 0, 5, 0, 1)]


def test_no_pairs_give_no_tables(tmp_path):
    with spool_of(np.eye(3, dtype=np.float32), tmp_path) as spool:
        assert agreement(spool, np.zeros((0, 2), np.int64), np.ones(3)).shape == (0, 6, 6)
