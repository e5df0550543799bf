"""Moments and readouts against definitions that keep every row, and against a world whose truth is known."""

import numpy as np
import pytest
import torch

from tests.worlds.dense_codes import codes_of
from trainer.analysis.claims.readout import FEWEST, STRENGTHS, readout, readout_ratio
from trainer.analysis.rows.moments import Moments
from trainer.crosscoder.crosscoder import Codes
from trainer.toy.world import BLOCK, WorldPlan, random_world

WIDTHS = {"left": 7, "right": 11}


def small_case(rows: int = 300, features: int = 9, seed: int = 0):
    """Rows far from zero, features that hang on them more or less, and halves of unlike size."""
    chance = np.random.default_rng(seed)
    x = {name: chance.normal(size=(rows, width)) * 2 + 1 for name, width in WIDTHS.items()}
    truth = x["left"] @ chance.normal(size=(WIDTHS["left"], features)) + chance.normal(size=(rows, features)) * 2
    dense = np.where(truth > 1, truth, 0).astype(np.float32)
    dense[:, -1] = 0
    dense[:FEWEST, -1] = 1.0
    half = (chance.random(rows) < 0.4).astype(np.int64)
    return x, dense, half


def moments_of(x, dense, half, *, block: int = 77) -> Moments:
    moments = Moments(WIDTHS, dense.shape[1])
    for first in range(0, len(dense), block):
        some = slice(first, first + block)
        rows = {name: torch.from_numpy(values[some]).float() for name, values in x.items()}
        moments.add(rows, codes_of(dense[some]), torch.from_numpy(half[some]))
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

    return min(STRENGTHS, key=score)


def slow_score(x, f, half):
    errors = deviations = 0.0
    for fitted in (0, 1):
        fit, unseen = half == fitted, half != fitted
        weight, intercept = ridge(x[fit], f[fit], best_strength(x[fit], f[fit]))
        errors += ((f[unseen] - x[unseen] @ weight - intercept) ** 2).sum()
        deviations += ((f[unseen] - f[unseen].mean()) ** 2).sum()
    return 1 - errors / deviations


def test_moments_are_the_sums_over_the_rows_of_each_half():
    x, dense, half = small_case()

    moments = moments_of(x, dense, half)

    for number in (0, 1):
        mine = half == number
        assert moments.of_rows.rows[number] == mine.sum()
        assert moments.firings[number].tolist() == (dense[mine] != 0).sum(axis=0).tolist()
        assert moments.sums[number].numpy() == pytest.approx(dense[mine].sum(axis=0, dtype=np.float64), rel=1e-6)
        assert moments.squares[number].numpy() == pytest.approx((dense[mine].astype(float) ** 2).sum(axis=0), rel=1e-6)
        for name, values in x.items():
            assert moments.of_rows.total[name][number].numpy() == pytest.approx(values[mine].sum(axis=0), rel=1e-5)
            assert moments.of_rows.products[name][number].numpy() == pytest.approx(
                values[mine].T @ values[mine], rel=1e-4
            )
            assert moments.cross[name][number].numpy() == pytest.approx(
                dense[mine].T @ values[mine], rel=1e-4, abs=1e-3
            )


@pytest.mark.parametrize("source", WIDTHS)
def test_the_score_equals_fitting_on_all_rows_of_one_half_and_predicting_every_row_of_the_other(source: str):
    x, dense, half = small_case()

    found = readout(moments_of(x, dense, half), source).score

    # One source's rows made these features, so there it is well above zero; the other's know nothing of them.
    expected = [slow_score(x[source], dense[:, feature].astype(float), half) for feature in range(8)]
    assert found[:8] == pytest.approx(expected, abs=1e-5)
    assert min(expected) > 0.3 if source == "left" else max(expected) < 0.1


def test_a_feature_that_fired_too_rarely_in_a_half_has_no_score():
    x, dense, half = small_case()
    assert (dense[half == 1, 8] != 0).sum() < FEWEST

    assert np.isnan(readout(moments_of(x, dense, half), "left").score[8])


def test_rows_in_one_half_alone_give_no_score():
    x, dense, half = small_case()

    assert np.isnan(readout(moments_of(x, dense, np.zeros_like(half)), "left").score).all()


def test_weights_are_fitted_on_all_rows():
    x, dense, half = small_case()

    weight, intercept = readout(moments_of(x, dense, half), "left").weight(np.array([3, 1]))

    for row, feature in enumerate([3, 1]):
        f = dense[:, feature].astype(float)
        expected, constant = ridge(x["left"], f, best_strength(x["left"], f))
        assert weight[row].numpy() == pytest.approx(expected, abs=1e-5)
        assert float(intercept[row]) == pytest.approx(constant, abs=1e-5)


def test_activations_in_which_some_direction_never_varies_are_no_obstacle():
    x, dense, half = small_case()
    x["left"][:, 2], x["left"][:, 4] = 0, x["left"][:, 3]

    score = readout(moments_of(x, dense, half), "left").score

    assert np.isfinite(score[:8]).all()
    assert (score[:8] <= 1).all()


def test_readouts_tell_shared_concepts_of_a_known_world_from_exclusive_ones():
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

    # Concepts that fire together by common causes give a little even of what a source does not hold.
    assert (score[each, owner] > 0.15).all()
    assert np.median(ratio[holds.all(axis=1)]) > 0.75
    assert (ratio[holds.all(axis=1)] > 0.4).all()
    assert np.abs(ratio[~holds.all(axis=1)]).max() < 0.1


def sums(codes: Codes, vectors: torch.Tensor) -> torch.Tensor:
    """Rows of activations: every active concept's direction times its magnitude, and a little noise."""
    dense = torch.zeros(codes.rows, len(vectors)).index_put_((codes.row, codes.feature), codes.value)
    return dense @ vectors + 0.01 * torch.randn(codes.rows, vectors.shape[1])


def test_the_ratio_is_the_best_from_outside_over_the_best_of_the_owners():
    score = np.array(
        [
            [0.4, 0.1, 0.2],  # the first one's: the third tells half of it
            [0.4, 0.5, -0.1],  # of the first two: the third tells nothing
            [0.4, 0.5, 0.3],  # of all three
            [0.4, 0.5, 0.3],  # of nobody
            [0.01, 0.3, 0.2],  # the first one's, which hardly tells it itself
            [np.nan, np.nan, np.nan],  # fired too rarely
        ]
    )
    holds = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0]], bool)

    found = readout_ratio(score, holds)

    assert found[:2].tolist() == pytest.approx([0.5, -0.2])
    assert np.isnan(found[2:]).all()
