"""Correlations over all rows equal those of the dense matrix."""

import numpy as np
import pytest
from hypothesis import given, settings

from tests.worlds.dense_codes import matrices, spool_of
from trainer.analysis.pairs import coactivation as module
from trainer.analysis.pairs.coactivation import Coactivation
from trainer.kernels import cpu


def correlations(dense: np.ndarray, folder, *, block: int) -> np.ndarray:
    with spool_of(dense, folder) as spool:
        parts = list(Coactivation(spool).correlations(block))
    assert [first for first, _ in parts] == np.cumsum([0] + [len(part) for _, part in parts])[:-1].tolist()
    return np.vstack([part for _, part in parts])


@pytest.mark.parametrize("memory", [1 << 20, 1])
@settings(max_examples=40, deadline=None)
@given(dense=matrices(rows=60, features=8))
def test_correlations_are_those_of_the_dense_matrix_however_many_passes_it_takes(memory, dense, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MEMORY", memory)
        found = correlations(dense, tmp_path_factory.getbasetemp(), block=3)

    varying = dense.std(axis=0) > 0
    if varying.any():
        expected = np.corrcoef(dense[:, varying].astype(np.float64), rowvar=False)
        assert np.allclose(found[np.ix_(varying, varying)], expected, atol=1e-4)
    assert np.isnan(found[~varying]).all()
    assert np.isnan(found[:, ~varying]).all()


@pytest.mark.parametrize("compiler", [True, False])
def test_correlations_of_many_rows_stay_exact(compiler, monkeypatch, tmp_path):
    usable = compiler and cpu.available()
    monkeypatch.setattr(cpu, "available", lambda: usable)
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((3000, 5)) < 0.2, rng.gamma(2.0, 1.0, (3000, 5)), 0).astype(np.float32)
    dense[:, 4] = dense[:, 0] * 2

    found = correlations(dense, tmp_path, block=2)

    assert np.abs(found - np.corrcoef(dense, rowvar=False)).max() < 1e-5
