"""Firings spooled by row are read back unchanged by feature."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worlds.dense_codes import codes_of, feature_codes, matrices, spool_of
from trainer.analysis.rows import codes as module
from trainer.analysis.rows.codes import CodeSpool, FeatureCodes
from trainer.crosscoder.crosscoder import Codes
from trainer.errors import StoreError


def dense_of(codes: FeatureCodes, rows: int) -> np.ndarray:
    dense = np.zeros((rows, codes.features), np.float32)
    dense[codes.row, codes.feature] = codes.value
    return dense


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 5)


@settings(max_examples=50, deadline=None)
@given(dense=matrices(), data=st.data())
def test_any_range_of_features_is_read_back_with_rows_ascending(dense, data, tmp_path_factory):
    first = data.draw(st.integers(0, dense.shape[1]))
    stop = data.draw(st.integers(first, dense.shape[1]))
    with spool_of(dense, tmp_path_factory.getbasetemp()) as spool:
        codes = spool.read(first, stop)

    assert np.array_equal(dense_of(codes, len(dense)), dense[:, first:stop])
    for feature in range(stop - first):
        rows = codes.row[codes.start[feature] : codes.start[feature + 1]]
        assert (np.diff(rows) > 0).all()


@settings(max_examples=30, deadline=None)
@given(dense=matrices())
def test_ranges_cover_every_feature_once_and_matrices_every_firing_once(dense, tmp_path_factory):
    with spool_of(dense, tmp_path_factory.getbasetemp()) as spool:
        ranges = list(spool.feature_ranges())
        parts = [matrix.toarray() for matrix in spool.matrices()]

    assert [part.first for part in ranges] == np.cumsum([0] + [part.features for part in ranges])[:-1].tolist()
    assert np.array_equal(np.hstack([dense_of(part, len(dense)) for part in ranges]), dense)
    # Rows without firings may be missing: they add nothing to a sum over rows.
    stacked = np.vstack(parts) if parts else np.zeros((0, dense.shape[1]))
    assert np.array_equal(stacked[stacked.any(axis=1)], dense[dense.any(axis=1)])
    assert spool.rows == len(dense)
    assert np.array_equal(spool.counts, (dense != 0).sum(axis=0))


def test_reordered_rows_are_sorted_again():
    dense = np.array([[1.0, 0.0], [2.0, 3.0], [0.0, 4.0]], np.float32)
    codes = feature_codes(dense).reordered(np.array([2, 0, 1]))

    assert codes.row.tolist() == [0, 2, 0, 1]
    assert codes.value.tolist() == [2.0, 1.0, 3.0, 4.0]


def test_the_largest_activation_is_zero_where_nothing_fired():
    dense = np.array([[0.0, 0.0, 1.0], [0.0, 5.0, 2.0]], np.float32)

    assert feature_codes(dense).largest().tolist() == [0.0, 5.0, 2.0]


def test_activations_that_are_not_finite_are_refused_with_the_rows_they_came_from(tmp_path):
    bad = Codes(torch.tensor([0]), torch.tensor([0]), torch.tensor([float("inf")]), 2)
    with CodeSpool(tmp_path, 1) as spool:
        spool.append(codes_of(np.ones((3, 1), np.float32)))
        with pytest.raises(StoreError, match="Rows 3 to 5"):
            spool.append(bad)


def test_the_spool_has_no_visible_files(tmp_path):
    with spool_of(np.ones((9, 2), np.float32), tmp_path):
        assert list(tmp_path.iterdir()) == []
