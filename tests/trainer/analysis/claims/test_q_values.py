"""q-values by hand on a few claims, and by simulation with known false claims."""

import numpy as np
import pytest

from trainer.analysis.claims.q_values import largest_p_values, p_values, q_values


def test_a_claim_is_ranked_among_the_decoys_and_itself():
    found = p_values(np.array([5.0, 2.0, 0.0]), np.array([1.0, 2.0, 3.0]))

    # No decoy is at least as strong as 5, two are at least as strong as 2, all three as 0.
    assert found.tolist() == [1 / 4, 3 / 4, 4 / 4]


def test_nan_has_no_p_value_and_is_no_decoy():
    assert np.isnan(p_values(np.array([np.nan]), np.array([1.0]))).all()
    assert np.isnan(p_values(np.array([1.0]), np.array([np.nan]))).all()
    assert p_values(np.array([1.0]), np.array([0.0, np.nan])).tolist() == [1 / 2]


def test_q_values_are_those_of_benjamini_and_hochberg():
    # By hand: 0.01*4/1, 0.04*4/2, 0.03*4/2... in order of p: 0.01, 0.03, 0.04, 0.5.
    found = q_values(np.array([0.04, 0.01, 0.5, 0.03]))

    assert found == pytest.approx([0.16 / 3, 0.04, 0.5, 0.16 / 3])


def test_claims_that_cannot_be_tested_do_not_count():
    found = q_values(np.array([0.04, np.nan, 0.01]))

    assert found[[0, 2]] == pytest.approx([0.04, 0.02])
    assert np.isnan(found[1])


def test_no_q_value_is_above_one():
    assert q_values(np.array([1.0, 0.9])).tolist() == [1.0, 1.0]
    assert q_values(np.zeros(0)).tolist() == []


def test_of_several_sets_of_decoys_the_largest_p_value_counts():
    found = largest_p_values([np.array([0.1, np.nan]), np.array([0.3, np.nan])], 2)

    assert found[0] == 0.3
    assert np.isnan(found[1])
    assert np.isnan(largest_p_values([], 2)).all()


@pytest.mark.parametrize("true_share", [0.0, 0.1, 0.6])
def test_with_decoys_distributed_like_false_claims_the_false_share_stays_below_the_q_value(true_share):
    rng, shares = np.random.default_rng(3), []
    for _ in range(400):
        false = rng.random(200) >= true_share
        strength = rng.normal(np.where(false, 0.0, 3.0))
        found = q_values(p_values(strength, rng.normal(size=500))) <= 0.1
        shares.append((found & false).sum() / max(found.sum(), 1))

    # Four standard errors of a mean of 400.
    assert np.mean(shares) <= 0.1 + 4 * np.std(shares) / 20
    # The bound is not too conservative: at least half of the allowed false share is reached.
    assert true_share == 0.0 or np.mean(shares) >= 0.1 * (1 - true_share) / 2
