"""Moments and readouts against direct computation, and on a synthetic world with known truth."""

import numpy as np
import pytest
import torch

from tests.worlds.dense_codes import codes_of
from trainer.analysis.claims.readout import MIN_FIRINGS, RIDGE_STRENGTHS, readout
from trainer.analysis.rows.moments import Moments
from trainer.crosscoder.crosscoder import Codes
from trainer.toy.world import BLOCK, WorldPlan, random_world

WIDTHS = {"left": 7, "right": 11}


def small_case(rows: int = 300, features: int = 9, seed: int = 0):
    """Rows with non-zero mean, features that depend on them in part, and folds of unequal size."""
    rng = np.random.default_rng(seed)
    x = {name: rng.normal(size=(rows, width)) * 2 + 1 for name, width in WIDTHS.items()}
    signal = x["left"] @ rng.normal(size=(WIDTHS["left"], features)) + rng.normal(size=(rows, features)) * 2
    dense = np.where(signal > 1, signal, 0).astype(np.float32)
    dense[:, -1] = 0
    dense[:MIN_FIRINGS, -1] = 1.0
    fold = (rng.random(rows) < 0.4).astype(np.int64)
    return x, dense, fold


def moments_of(x, dense, fold, *, block: int = 77) -> Moments:
    moments = Moments(WIDTHS, dense.shape[1])
    for first in range(0, len(dense), block):
        some = slice(first, first + block)
        rows = {name: torch.from_numpy(values[some]).float() for name, values in x.items()}
        moments.add(rows, codes_of(dense[some]), torch.from_numpy(fold[some]))
    return moments


def ridge(x, f, strength):
    """Weights and intercept of one feature, from the normal equations of centred rows."""
    centred = x - x.mean(axis=0)
    added = strength * (centred**2).sum() / x.shape[1] * np.eye(x.shape[1])
    weight = np.linalg.solve(centred.T @ centred + added, centred.T @ (f - f.mean()))
    return weight, f.mean() - x.mean(axis=0) @ weight


def best_strength(x, f):
    """The strength with the smallest generalised cross-validation score, from the whole hat matrix."""
    centred, deviation = x - x.mean(axis=0), f - f.mean()
    unit = (centred**2).sum() / x.shape[1]

    def score(strength):
        inverse = np.linalg.inv(centred.T @ centred + strength * unit * np.eye(x.shape[1]))
        hat = centred @ inverse @ centred.T
        return ((deviation - hat @ deviation) ** 2).sum() / (len(x) - 1 - np.trace(hat)) ** 2

    return min(RIDGE_STRENGTHS, key=score)


def slow_score(x, f, fold):
    errors = deviations = 0.0
    for fitted in (0, 1):
        fit, held_out = fold == fitted, fold != fitted
        weight, intercept = ridge(x[fit], f[fit], best_strength(x[fit], f[fit]))
        errors += ((f[held_out] - x[held_out] @ weight - intercept) ** 2).sum()
        deviations += ((f[held_out] - f[held_out].mean()) ** 2).sum()
    return 1 - errors / deviations


def test_moments_are_the_sums_over_the_rows_of_each_fold():
    x, dense, fold = small_case()

    moments = moments_of(x, dense, fold)

    for number in (0, 1):
        rows = fold == number
        assert moments.row_moments.rows[number] == rows.sum()
        assert moments.firings[number].tolist() == (dense[rows] != 0).sum(axis=0).tolist()
        assert moments.sums[number].numpy() == pytest.approx(dense[rows].sum(axis=0, dtype=np.float64), rel=1e-6)
        assert moments.squares[number].numpy() == pytest.approx((dense[rows].astype(float) ** 2).sum(axis=0), rel=1e-6)
        for name, values in x.items():
            assert moments.row_moments.total[name][number].numpy() == pytest.approx(values[rows].sum(axis=0), rel=1e-5)
            assert moments.row_moments.products[name][number].numpy() == pytest.approx(
                values[rows].T @ values[rows], rel=1e-4
            )
            assert moments.cross[name][number].numpy() == pytest.approx(
                dense[rows].T @ values[rows], rel=1e-4, abs=1e-3
            )


def test_how_many_sums_are_computed_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    case = small_case()
    whole = moments_of(*case)
    monkeypatch.setattr("trainer.analysis.rows.moments.SUMS", 3 * 2 * whole.features)

    parts = moments_of(*case)

    for name, sums in whole.cross.items():
        assert torch.equal(parts.cross[name], sums)


@pytest.mark.parametrize("source", WIDTHS)
def test_the_score_equals_that_of_fitting_one_fold_and_predicting_the_other(source: str):
    x, dense, fold = small_case()

    found = readout(moments_of(x, dense, fold), source).score

    # The features depend on the rows of `left` only.
    expected = [slow_score(x[source], dense[:, feature].astype(float), fold) for feature in range(8)]
    assert found[:8] == pytest.approx(expected, abs=1e-5)
    assert min(expected) > 0.3 if source == "left" else max(expected) < 0.1


def test_a_feature_that_fired_too_rarely_in_a_fold_has_no_score():
    x, dense, fold = small_case()
    assert (dense[fold == 1, 8] != 0).sum() < MIN_FIRINGS

    assert np.isnan(readout(moments_of(x, dense, fold), "left").score[8])


def test_rows_in_one_fold_only_give_no_score():
    x, dense, fold = small_case()

    assert np.isnan(readout(moments_of(x, dense, np.zeros_like(fold)), "left").score).all()


def test_singular_activations_are_handled():
    x, dense, fold = small_case()
    x["left"][:, 2], x["left"][:, 4] = 0, x["left"][:, 3]

    score = readout(moments_of(x, dense, fold), "left").score

    assert np.isfinite(score[:8]).all()
    assert (score[:8] <= 1).all()


def test_readouts_distinguish_shared_from_exclusive_concepts_of_a_synthetic_world():
    world = random_world(WorldPlan(concepts=60, widths=(24, 32), exclusive_share=0.3), seed=1)
    moments = Moments({name: vectors.shape[1] for name, vectors in world.vectors.items()}, 60)
    generator = torch.Generator().manual_seed(2)
    for first in range(2):
        active = world.firing.draw(BLOCK, generator)
        codes = Codes(active.row, active.concept, active.magnitude, BLOCK)
        rows = {name: sums(codes, vectors) for name, vectors in world.vectors.items()}
        moments.add(rows, codes, torch.full((BLOCK,), first))
    score = np.stack([readout(moments, name).score for name in world.sources], axis=1)
    holds = np.stack([(vectors != 0).any(dim=1).numpy() for vectors in world.vectors.values()], axis=1)

    owner = np.where(holds.all(axis=1), score.argmax(axis=1), holds.argmax(axis=1))
    each = np.arange(60)
    ratio = score[each, 1 - owner] / score[each, owner]

    # Concepts correlated by common causes make even an absent concept slightly predictable.
    assert (score[each, owner] > 0.15).all()
    assert np.median(ratio[holds.all(axis=1)]) > 0.75
    assert (ratio[holds.all(axis=1)] > 0.4).all()
    assert np.abs(ratio[~holds.all(axis=1)]).max() < 0.1


def sums(codes: Codes, vectors: torch.Tensor) -> torch.Tensor:
    """Rows of activations: sums of magnitude times direction of the active concepts, plus a little noise."""
    dense = torch.zeros(codes.rows, len(vectors)).index_put_((codes.row, codes.feature), codes.value)
    return dense @ vectors + 0.01 * torch.randn(codes.rows, vectors.shape[1])
