"""Coherence distinguishes a monosemantic feature from a polysemous one."""

import numpy as np
import pytest
import torch

from tests.worlds.dense_codes import codes_of
from trainer.analysis.per_feature import coherence as module
from trainer.analysis.per_feature.coherence import POLYSEMOUS, best_of_holders, coherence
from trainer.analysis.rows.moments import Moments

WIDTH = 24


def moments_of(x: np.ndarray, dense: np.ndarray, fold: np.ndarray) -> Moments:
    moments = Moments({"only": x.shape[1]}, dense.shape[1])
    moments.add({"only": torch.from_numpy(x).float()}, codes_of(dense), torch.from_numpy(fold))
    return moments


def test_coherence_is_the_mean_product_of_rows_from_different_folds_weighted_by_activation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 5)) + 2
    dense = (rng.random((50, 3)) * (rng.random((50, 3)) < 0.4)).astype(np.float32)
    fold = rng.integers(0, 2, 50)

    found = coherence(moments_of(x, dense, fold), "only")

    centred = x - x.mean(axis=0)
    for feature in range(3):
        total = weights = 0.0
        for one in np.flatnonzero(fold == 0):
            for two in np.flatnonzero(fold == 1):
                weight = float(dense[one, feature]) * float(dense[two, feature])
                total += weight * (centred[one] @ centred[two])
                weights += weight
        assert found[feature] == pytest.approx(total / weights / (centred**2).sum(axis=1).mean(), rel=1e-4)


def test_a_feature_of_four_concepts_has_a_quarter_of_the_coherence_of_a_feature_of_one():
    rng = np.random.default_rng(1)
    rows, concepts = 40_000, 4
    directions = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    active = rng.random((rows, concepts)) < 0.02
    x = 3 * active @ directions[:concepts] + rng.normal(size=(rows, WIDTH)) / np.sqrt(WIDTH)
    at_random = rng.random(rows) < 0.05
    dense = np.column_stack([active[:, 0], active.any(axis=1), at_random]).astype(np.float32)

    found = coherence(moments_of(x, dense, np.arange(rows) % 2), "only")

    assert found[1] == pytest.approx(found[0] / concepts, rel=0.2)
    assert found[1] > POLYSEMOUS
    assert abs(found[2]) < 0.01


def test_a_feature_that_fired_in_one_fold_only_has_no_coherence():
    x = np.random.default_rng(2).normal(size=(4, 3))

    assert np.isnan(coherence(moments_of(x, np.eye(4, 1, dtype=np.float32), np.array([0, 1, 0, 1])), "only")).all()


def test_the_best_value_is_taken_over_the_sources_that_have_the_feature():
    values = np.array([[0.1, 0.4], [0.1, 0.4], [np.nan, 0.2], [0.3, 0.5]])
    holds = np.array([[True, True], [True, False], [True, True], [False, False]])

    assert best_of_holders(values, holds)[:3].tolist() == [0.4, 0.1, 0.2]
    assert np.isnan(best_of_holders(values, holds)[3])


def test_how_many_features_are_summed_at_a_time_changes_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    dense = (rng.random((60, 7)) * (rng.random((60, 7)) < 0.5)).astype(np.float32)
    moments = moments_of(rng.normal(size=(60, WIDTH)), dense, rng.integers(0, 2, 60))
    expected = coherence(moments, "only")
    monkeypatch.setattr(module, "BLOCK", 2)

    assert np.array_equal(coherence(moments, "only"), expected, equal_nan=True)
